"""`gnfast sample RUN`: images from a run's generator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gnfast.cli.common import UsageError, parse, user_errors


@dataclass(frozen=True)
class SampleOptions:
    """Draw images from the generator of a run's newest checkpoint."""

    n: int = 64
    """How many images."""
    out: str = ""
    """Where to: FILE.png for one grid, or a folder for one PNG per image. RUN/sample-ema.png or -raw.png if empty."""
    weights: Literal["ema", "raw"] = "ema"
    """The moving average of the generator, or the generator itself; --ema and --raw are short for them."""
    seed: int = 0
    """Seed of the latent vectors."""
    bn: Literal["batch", "running", "run"] = "run"
    """Batch-norm statistics: each batch's own, as in the papers' code, running ones, or what the run samples with."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, …"""


def run(words: list[str]) -> int:
    """`gnfast sample RUN [--n --out --ema/--raw]`."""
    short = {"--ema": ["--weights", "ema"], "--raw": ["--weights", "raw"]}
    rest = [part for word in words for part in short.get(word, [word])]
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
        raise UsageError("sample: which run? usage: gnfast sample RUN [--n N] [--out PATH] [--ema | --raw]")
    run = None if rest[0] in ("-h", "--help") else rest.pop(0)
    options = parse(
        SampleOptions,
        rest,
        prog="gnfast sample RUN",
        description="Draw images from the generator of a run's newest checkpoint.\n\n"
        "Examples:\n  gnfast sample runs/digits\n  gnfast sample runs/digits --n 5000 --out fakes --raw",
    )
    from gnfast.train.sample import sample_run

    with user_errors():
        path = sample_run(
            Path(run),
            count=options.n,
            out=Path(options.out) if options.out else None,
            weights=options.weights,
            seed=options.seed,
            batch_norm=options.bn,
            device=options.device,
        )
    print(path)
    return 0
