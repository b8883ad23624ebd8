"""`gnfast export RUN --out FILE.safetensors`: a run's generator as one file."""

from dataclasses import dataclass
from typing import Literal

from gnfast.cli.common import UsageError, parse, spelled_out, user_errors
from gnfast.io.files import expanded, output_file

USAGE = "usage: gnfast export RUN|FILE.pt --out FILE.safetensors [--ema | --raw]"


@dataclass(frozen=True)
class ExportOptions:
    """Write the generator of a run's newest checkpoint as a safetensors file."""

    out: str = ""
    """The file to write; RUN/generator-ema.safetensors or -raw.safetensors if empty, or FILE.safetensors."""
    weights: Literal["", "ema", "raw"] = ""
    """The moving average of the generator (that, or what a file has, if empty), or the generator itself; --ema and
    --raw are short for them."""


def run(words: list[str]) -> int:
    """`gnfast export RUN [--out --ema/--raw]`."""
    rest = spelled_out(words)
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
        raise UsageError(f"export: which run? {USAGE}")
    source = None if rest[0] in ("-h", "--help") else expanded(rest.pop(0))
    options = parse(
        ExportOptions,
        rest,
        prog="gnfast export RUN|FILE.pt",
        description="Write the generator of a run's newest checkpoint, or of a checkpoint of the papers' code, as one "
        "safetensors file, with its settings and scores.\n\n"
        "Examples:\n  gnfast export runs/digits --out G.safetensors\n  gnfast sample G.safetensors --n 100\n"
        "  gnfast export logs/GN-GAN_CIFAR10_RES_0/best_model.pt --out published.safetensors\n"
        "  python -c \"from gnfast.train.export import load_generator; print(load_generator('G.safetensors'))\"",
    )
    from gnfast.train.export import export

    with user_errors():
        default = (
            source / f"generator-{options.weights or 'ema'}.safetensors"
            if source.is_dir()
            else source.with_suffix(".safetensors")
        )
        out = output_file(options.out) if options.out else default
        path = export(source, out, options.weights or None)
    print(path)
    return 0
