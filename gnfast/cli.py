"""The command line: `gnfast train`, `sample`, `info`, `presets`.

Every error that a user can cause is one line on stderr and exit status 2; a failed training is status 1; a run that a
signal stopped ends with 128 + the signal's number, as shells expect.
"""

import contextlib
import io
import platform
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")

USAGE = """\
usage: gnfast COMMAND [ARGUMENTS]

Train GANs with gradient-normalised critics, exactly and without double backward.

commands:
  train PRESET   train a generator; repeat the command to continue a run that stopped
  sample RUN     draw images from a run's generator
  presets        the presets in a table; `gnfast presets NAME` shows one with the source of each value
  info           versions, devices, what was built and what each backend is used for

examples:
  gnfast train digits                                    handwritten digits, minutes on a CPU
  gnfast train gngan-cifar10-cnn --data cifar10.tar.xz   GN-GAN's CIFAR-10 experiment on images from a file
  gnfast train gngan-cifar10-resnet --dry-run            what would run, and nothing else
  gnfast sample runs/digits --n 100 --out digits.png     a grid of 100 images

`gnfast COMMAND --help` explains every option.
"""

TRAIN_HELP = """\
Train the preset {name}: {summary}.

A run lives in one folder (--run-dir): config.json, environment.json, log.txt, metrics.jsonl, samples/, checkpoints/,
tensorboard/, curves.png. Repeating the command continues a run that stopped (Ctrl-C, SIGTERM, a crash) from its last
checkpoint; on a CPU the numbers are those of an uninterrupted run.

Examples:
  gnfast train {name}{data} --dry-run
  gnfast train {name}{data} --steps 50 --sample-every 10 --run-dir runs/look
  gnfast train {name}{data} --width 0.25 --batch-d 32 --batch-g 32
  gnfast train {name}{data} --impl reference --run-dir runs/double-backward
"""


class UsageError(Exception):
    """The command line is not one that gnfast understands; the message is one line."""


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the command line without the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    command, rest = words[0], words[1:]
    try:
        if command not in COMMANDS:
            raise UsageError(_unknown("command", command, COMMANDS))
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"gnfast: warning: {message}", file=sys.stderr)
            return COMMANDS[command](rest)
    except UsageError as error:
        print(f"gnfast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gnfast: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        if error.name in TRAIN_PACKAGES:
            print(f"gnfast: {command} needs {error.name}: pip install gnfast[train]", file=sys.stderr)
            return 2
        raise


# Import names of the packages in the extra `train`.
TRAIN_PACKAGES = {"matplotlib", "numpy", "PIL", "safetensors", "sklearn", "tensorboard", "tqdm", "tyro"}


def train(words: list[str]) -> int:
    """`gnfast train PRESET [--option value …]`."""
    from gnfast.train.presets import PRESETS

    if not words or words[0] in ("-h", "--help"):
        print("usage: gnfast train PRESET [--dry-run] [--option value …]\n")
        print(_table())
        print("`gnfast train PRESET --help` lists every option with the preset's value.")
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name not in PRESETS:
        raise UsageError(_unknown("preset", name, PRESETS))
    preset = PRESETS[name]
    dry = "--dry-run" in rest
    data = "" if preset.config.data else " --data PATH"
    config = _parse(
        type(preset.config),
        [word for word in rest if word != "--dry-run"],
        prog=f"gnfast train {name}",
        description=TRAIN_HELP.format(name=name, summary=preset.summary, data=data)
        + "\n--dry-run prints the settings, the networks and the critic's plan, and exits.",
        default=preset.config,
    )
    if dry:
        with _user_errors():
            return _dry_run(name, config)
    if not config.data:
        raise UsageError(preset.needs)
    from gnfast.train import NonFiniteLossError
    from gnfast.train import train as run

    try:
        with _user_errors():
            outcome = run(name, config, progress=sys.stderr.isatty())
    except NonFiniteLossError as error:
        print(f"gnfast: {error}", file=sys.stderr)
        return 1
    if outcome.picture:
        print(f"samples: {outcome.picture}")
    return 0 if outcome.finished else 128 + outcome.signal


def sample(words: list[str]) -> int:
    """`gnfast sample RUN [--n --out --ema/--raw]`."""
    short = {"--ema": ["--weights", "ema"], "--raw": ["--weights", "raw"]}
    rest = [part for word in words for part in short.get(word, [word])]
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
        raise UsageError("sample: which run? usage: gnfast sample RUN [--n N] [--out PATH] [--ema | --raw]")
    run = None if rest[0] in ("-h", "--help") else rest.pop(0)
    options = _parse(
        SampleOptions,
        rest,
        prog="gnfast sample RUN",
        description="Draw images from the generator of a run's newest checkpoint.\n\n"
        "Examples:\n  gnfast sample runs/digits\n  gnfast sample runs/digits --n 5000 --out fakes --raw",
    )
    from gnfast.train.sample import sample_run

    with _user_errors():
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


def presets(words: list[str]) -> int:
    """`gnfast presets [NAME]`."""
    from gnfast.train.config import as_json
    from gnfast.train.presets import PRESETS

    if words and words[0] in ("-h", "--help"):
        print("usage: gnfast presets [NAME]\n\nThe presets in a table, or one with the source of each value.")
        return 0
    if len(words) > 1:
        raise UsageError(f"presets takes one name, got {len(words)}: {' '.join(words)}")
    if not words:
        print(_table())
        return 0
    if words[0] not in PRESETS:
        raise UsageError(_unknown("preset", words[0], PRESETS))
    preset = PRESETS[words[0]]
    print(f"{words[0]}: {preset.summary}\n")
    rows = [
        (f"--{name.replace('_', '-')}", _plain(value), preset.source_of(name))
        for name, value in as_json(preset.config).items()
    ]
    print(_columns([("option", "value", "source"), *rows]))
    return 0


def info(words: list[str]) -> int:
    """`gnfast info`."""
    if words:
        if words[0] in ("-h", "--help"):
            print("usage: gnfast info\n\nVersions, devices, what was built and what each backend is used for.")
            return 0
        raise UsageError(f"info takes no arguments, got {' '.join(words)}")
    import torch

    import gnfast
    from gnfast.kernels import backends, build_info

    rows = [
        ("gnfast", f"{gnfast.__version__}, in {Path(gnfast.__file__).parent}"),
        ("torch", torch.__version__ + (f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA")),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    print(_columns(rows))
    print("\nbuilt")
    built = [(f"  {name}", _plain(value)) for name, value in build_info().items()]
    print(_columns(built))
    print("\nbackends")
    print(_columns([(f"  {operation}", _plain(chosen)) for operation, chosen in backends().items()]))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {"train": train, "sample": sample, "presets": presets, "info": info}


def _dry_run(name: str, config: object) -> int:
    import torch

    import gnfast
    from gnfast.train.config import Config, as_json
    from gnfast.train.state import build_networks

    assert isinstance(config, Config)
    print(f"{name}, dry run: nothing is trained, read or written.\n")
    print(_columns([(f"--{key.replace('_', '-')}", _plain(value)) for key, value in as_json(config).items()]))
    generator, critic = build_networks(config)
    for title, net in (("generator", generator), ("critic", critic)):
        count = sum(parameter.numel() for parameter in net.parameters())
        print(f"\n{title}: {type(net).__module__}.{type(net).__name__}, {count:,} parameters", end="")
    print(f"\n\nthe critic's plan for one update, {2 * config.batch_d} images:\n")
    print(gnfast.trace(critic, torch.zeros(2 * config.batch_d, config.channels, config.resolution, config.resolution)))
    folder = config.run_dir or f"runs/{name}"
    board = ", tensorboard/" if config.tensorboard else ""
    print(
        f"\nwould write into {folder}/: config.json, environment.json, log.txt, metrics.jsonl, curves.png, "
        f"samples/ema-STEP.png, samples/raw-STEP.png, checkpoints/step-STEP.pt{board}"
    )
    return 0


def _parse(kind: type[T], words: list[str], *, prog: str, description: str, default: T | None = None) -> T:
    """tyro's parser, with its help as it is and its errors as one line."""
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind,
                args=words,
                prog=prog,
                description=description,
                **({} if default is None else {"default": default}),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(f"{_one_line(errors.getvalue())} (see {prog} --help)") from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _one_line(box: str) -> str:
    """What a framed message of tyro says, without its title, its frame and its repetition of the help."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰"]
    parts: list[list[str]] = [[]]
    for line in lines:
        if set(line) <= {"─", "-"}:
            parts.append([])
        else:
            parts[-1].append(line)
    if "╭" not in box and len(parts) > 1:
        # Where stdout is not UTF-8, the title is not in a frame but above a rule.
        parts.pop(0)
    message = " ".join(parts[0]).removeprefix("Error parsing Config: ")
    near = re.search(r"meant:.*?(--[\w-]+)", " ".join(line for part in parts[1:] for line in part))
    return f"{message}; did you mean {near.group(1)}?" if near else message


@contextlib.contextmanager
def _user_errors():
    """Errors that say what the user gave and what was wanted become one line; a bug keeps its traceback."""
    from gnfast.errors import UnsupportedError
    from gnfast.train.checkpoint import RunError

    try:
        yield
    except (ValueError, OSError, RunError, UnsupportedError) as error:
        raise UsageError(str(error)) from error


def _table() -> str:
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
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return '""' if value == "" else str(value)


def _unknown(what: str, word: str, known: Sequence[str] | dict) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, known, 1)
    return f"unknown {what} {word!r}; " + (f"did you mean {near[0]!r}?" if near else f"want one of {', '.join(known)}")
