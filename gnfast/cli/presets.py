"""`gnfast presets [NAME]`: the named experiments and where each value comes from."""

from gnfast.cli.common import UsageError, columns, plain, unknown


def run(words: list[str]) -> int:
    """`gnfast presets [NAME]`."""
    from gnfast.train.config import as_json
    from gnfast.train.presets import PRESETS

    if words and words[0] in ("-h", "--help"):
        print("usage: gnfast presets [NAME]\n\nThe presets in a table, or one with the source of each value.")
        return 0
    if len(words) > 1:
        raise UsageError(f"presets takes one name, got {len(words)}: {' '.join(words)}")
    if not words:
        print(table())
        return 0
    if words[0] not in PRESETS:
        raise UsageError(unknown("preset", words[0], PRESETS))
    preset = PRESETS[words[0]]
    print(f"{words[0]}: {preset.summary}\n")
    rows = [
        (f"--{name.replace('_', '-')}", plain(value), preset.source_of(name))
        for name, value in as_json(preset.config).items()
    ]
    print(columns([("option", "value", "source"), *rows]))
    return 0


def table() -> str:
    from gnfast.train.presets import PRESETS

    rows = [("preset", "networks", "loss", "lr D / G", "n_dis", "batch D / G", "steps", "what")]
    for name, preset in PRESETS.items():
        c = preset.config
        rows.append(
            (
                name,
                f"{c.model} {c.resolution}x{c.resolution}",
                c.loss,
                f"{c.lr_d:g} / {c.lr_g:g}",
                str(c.n_dis),
                f"{c.batch_d} / {c.batch_g}",
                f"{c.steps:,}",
                preset.summary,
            )
        )
    return columns(rows)
