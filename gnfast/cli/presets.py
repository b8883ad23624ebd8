"""`gnfast presets [WORD …]`: the named experiments, what was reported with them, and where each value comes from."""

import re
from collections.abc import Iterator
from difflib import get_close_matches

from gnfast.cli.common import UsageError, columns
from gnfast.config.config import as_json, option
from gnfast.config.presets import GROUPS, PRESETS, Preset
from gnfast.io.rows import plain

HELP = """\
usage: gnfast presets [WORD … | NAME | --all]

Without a word, how many presets there are of each paper and data set. With words, those presets that have all of them:
a paper, a data set, a size, a network, a normaliser or another part of a name, or its beginning; each with its settings
in brief and the scores that its paper reports. With a whole name, every value of that preset and its source.

Examples:
  gnfast presets
  gnfast presets gn-gan cifar10
  gnfast presets resnet celebahq
  gnfast presets gngan-cifar10-resnet
  gnfast presets --all
"""

SUMMARY = """\
{groups}

{count} presets in all:
  gnfast presets gn-gan cifar10        those of a paper and a data set, with settings and the scores that it reports
  gnfast presets resnet celebahq       with any words: paper, data set, size, network, normaliser, part of a name
  gnfast presets gngan-cifar10-resnet  one: every value, and where it comes from
  gnfast presets --all                 all of them"""

# Kinds of networks, of those whose name does not say it.
_KINDS = {"dcgan": "cnn", "layered-3": "cnn"}


def run(words: list[str]) -> int:
    """`gnfast presets [WORD …]`."""
    if {"-h", "--help"} & {*words}:
        print(HELP, end="")
        return 0
    wanted = [word.casefold() for word in words if word != "--all"]
    if not words:
        print(summary())
    elif len(wanted) == 1 and wanted[0] in PRESETS:
        _show(wanted[0])
    else:
        print(table(having(wanted)))
    return 0


def having(words: list[str]) -> set[str]:
    """The names of the presets that have all these words.

    A word is a part of a preset, or, where it is that of none, the beginning of one: `cifar10` is not CIFAR-100.

    Raises:
        UsageError: no preset has a word, or none has all of them.
    """
    parts = {name: parts_of(name, preset, title) for title, group in GROUPS.items() for name, preset in group.items()}
    known = sorted(set().union(*parts.values()) - {*PRESETS})
    found = {*PRESETS}
    for word in words:
        exact = {name for name in parts if word in parts[name]}
        begun = exact or {name for name in parts if any(part.startswith(word) for part in parts[name])}
        if not begun:
            near = get_close_matches(word, [*PRESETS, *known], 1)
            advice = f"did you mean {near[0]!r}?" if near else f"`gnfast presets` counts all {len(PRESETS)}"
            raise UsageError(f"unknown preset or part of one {word!r}; {_of_sizes(word) or advice}")
        found &= begun
    if not found:
        advice = _of_sizes(*words) or "`gnfast presets` shows what there is"
        raise UsageError(f"no preset has all of {', '.join(map(repr, words))}; {advice}")
    return found


def _of_sizes(*words: str) -> str:
    """What to do about a size that no preset has with the other words."""
    if not any(re.fullmatch(r"\d+(x\d+)?", word) for word in words):
        return ""
    return "presets are of the papers' sizes, and --resolution changes that: leave the size out"


def parts_of(name: str, preset: Preset, title: str) -> set[str]:
    """All words that a preset is found by, in small letters."""
    c = preset.config
    size, network = str(c.resolution), c.model.rpartition("-")[2]
    normalisers = {
        c.method: True,
        "sn": c.spectral_norm,
        "spectral-norm": c.spectral_norm,
        c.penalty: True,
        "gp": c.penalty != "none",
        f"{c.norm_d}-norm": c.norm_d != "none",
        "weight-norm": c.weight_norm != "none",
    }
    parts = {name, *name.split("-"), *re.findall(r"[\w-]+", title.casefold()), c.data, *c.data.split("-"), size}
    parts |= {f"{size}x{size}", c.model, _KINDS.get(c.model, network), c.loss}
    parts |= {word for word, has in normalisers.items() if has}
    return parts - {"", "none", "and", "it", "the", "with"}


def summary() -> str:
    """How many presets there are of each paper and data set, and one of each."""
    rows, titles = [("paper and data set", "size", "presets", "one of them")], {}
    for title, group in GROUPS.items():
        titles[title] = len(rows)
        rows += [(f"  {data}", sizes, f"{len(names):7}", names[0]) for data, sizes, names in _of_each_set(group)]
    return SUMMARY.format(groups=_titled(rows, titles), count=len(PRESETS))


def _of_each_set(group: dict[str, Preset]) -> Iterator[tuple[str, str, list[str]]]:
    """A data set, its sizes, and the names of its presets."""
    # The one that nobody may pass on has no name that --data knows.
    sets = {name: preset.config.data or "imagenet" for name, preset in group.items()}
    for data in dict.fromkeys(sets.values()):
        names = [name for name in group if sets[name] == data]
        sizes = sorted({group[name].config.resolution for name in names})
        yield data, ", ".join(map(str, sizes)), names


def table(wanted: set[str]) -> str:
    """These presets, grouped by paper."""
    rows = [("preset", "networks", "loss", "lr D / G", "n_dis", "batch D / G", "steps", "reported")]
    titles = {}
    for title, presets in GROUPS.items():
        for name, preset in presets.items():
            if name not in wanted:
                continue
            titles.setdefault(f"\n{title}", len(rows))
            c = preset.config
            networks = f"{c.model} {c.resolution}x{c.resolution}"
            rates, batches = f"{c.lr_d:g} / {c.lr_g:g}", f"{c.batch_d} / {c.batch_g}"
            rows.append((name, networks, c.loss, rates, str(c.n_dis), batches, f"{c.steps:,}", preset.reported))
    return _titled(rows, titles)


def _titled(rows: list[tuple[str, ...]], titles: dict[str, int]) -> str:
    """Rows in columns, with titles in front of those of these numbers."""
    lines = columns(rows).splitlines()
    for title, place in reversed(titles.items()):
        lines.insert(place, title)
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
