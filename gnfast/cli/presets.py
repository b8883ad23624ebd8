"""`gnfast presets [NAME]`: the named experiments, what was reported with them, and where each value comes from."""

from gnfast.cli.common import UsageError, columns
from gnfast.config.config import as_json, option
from gnfast.config.presets import GROUPS, PRESETS
from gnfast.errors import unknown
from gnfast.io.rows import plain

HELP = """\
usage: gnfast presets [NAME | PREFIX]

Without a name, every preset with its settings in brief and the scores that its paper reports; with the beginning of
some names, those; with a whole name, every value of that preset and its source.

Examples:
  gnfast presets
  gnfast presets gngan-cifar10
  gnfast presets gngan-cifar10-resnet
"""


def run(words: list[str]) -> int:
    """`gnfast presets [NAME]`."""
    if words and words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if len(words) > 1:
        raise UsageError(f"presets takes one name, got {len(words)}: {' '.join(words)}")
    prefix = words[0] if words else ""
    if prefix in PRESETS:
        _show(prefix)
    elif any(name.startswith(prefix) for name in PRESETS):
        print(table(prefix))
    else:
        raise UsageError(unknown("preset", prefix, PRESETS))
    return 0


def table(prefix: str = "") -> str:
    """The presets whose names begin with `prefix`, grouped by paper."""
    rows = [("preset", "networks", "loss", "lr D / G", "n_dis", "batch D / G", "steps", "reported")]
    titles = {}
    for title, presets in GROUPS.items():
        for name, preset in presets.items():
            if not name.startswith(prefix):
                continue
            titles.setdefault(title, len(rows))
            c = preset.config
            networks = f"{c.model} {c.resolution}x{c.resolution}"
            rates, batches = f"{c.lr_d:g} / {c.lr_g:g}", f"{c.batch_d} / {c.batch_g}"
            rows.append((name, networks, c.loss, rates, str(c.n_dis), batches, f"{c.steps:,}", preset.reported))
    lines = columns(rows).splitlines()
    for title, place in reversed(titles.items()):
        lines[place:place] = ["", title]
    return "\n".join(lines)


def _show(name: str) -> None:
    preset = PRESETS[name]
    print(f"{name}: {preset.summary}\n")
    for title, text in (("reported", preset.reported), ("open", preset.open), ("needs", preset.needs)):
        if text:
            print(f"{title}: {text}")
    rows = [
        (option(setting), plain(value), preset.source_of(setting)) for setting, value in as_json(preset.config).items()
    ]
    print("\n" + columns([("option", "value", "source"), *rows]))
