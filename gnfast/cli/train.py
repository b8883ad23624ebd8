"""`gnfast train PRESET`: train a generator, or continue a run that stopped."""

import os
import sys
from shlex import quote

import torch

import gnfast
from gnfast.cli import processes
from gnfast.cli.common import UsageError, columns
from gnfast.cli.options import parse
from gnfast.config.chosen import of_its_data
from gnfast.config.config import Config, as_json, option
from gnfast.config.networks import require_networks
from gnfast.config.presets import GROUPS, PRESETS
from gnfast.config.together import without_effect
from gnfast.data.registry import require_source
from gnfast.errors import unknown
from gnfast.io.files import expanded
from gnfast.io.rows import plain

CHOOSE_HELP = """\
usage: gnfast train PRESET [--dry-run] [--profile] [--option value …]

Train a generator and its critic. A preset is an experiment with all its settings, and options change some of them. A
run lives in one folder; repeating the command continues it.

Presets, {count} in all; `gnfast presets gn-gan stl10` shows those with these words, `gnfast presets NAME` where each
value comes from:
{groups}

For images of your own take the preset whose size and networks you want:
  gngan-cifar10-cnn --data FOLDER|ZIP --crop square     32x32, a small CNN
  gngan-cifar10-resnet, gngan-stl10-resnet              32x32 and 48x48, a ResNet with five critic updates per step
  gngan-celebahq-128, gngan-celebahq-256                128x128 and 256x256, for large GPUs

The options that matter first:
  --data NAME|PATH          the real images: a name of `gnfast data list`, or a path (folder, zip, tar, …)
  --resolution, --channels  the size that they are brought to, grey or colour; --crop square does not stretch them
  --steps N                 generator updates in the whole run
  --width X                 a factor on all channel counts: below 1 for less work
  --batch-d, --batch-g      images per update of the critic and of the generator
  --method, --loss          the critic's normaliser, and what it is trained with
  --lr-d, --lr-g, --n-dis   learning rates, and critic updates per generator update
  --extractor, --eval-every what scores are computed with, and how often (inception: FID)
  --device, --seed          where it runs, and what chance decides
  --run-dir FOLDER          where all of it goes; runs/PRESET if not given
  --dry-run                 print the settings, the networks and the plan, and exit
  --profile                 write a page about where the time goes

Examples:
  gnfast train digits
  gnfast train gngan-cifar10-cnn --data pictures.zip --crop square --width 0.5 --steps 20000 --run-dir runs/mine

`gnfast train PRESET --help` explains every option, with that preset's value.
"""

TRAIN_HELP = """\
Train the preset {name}: {summary}.

A run lives in one folder (--run-dir): config.json, environment.json, log.txt, metrics.jsonl, speed.jsonl, samples/,
checkpoints/, tensorboard/, curves.png, report.html. Repeating the command continues a run that stopped (Ctrl-C,
SIGTERM, a closed terminal, a crash) from its last checkpoint; on a CPU the numbers are those of an uninterrupted run.

Examples:
  gnfast train {name}{data} --dry-run
  gnfast train {name}{data} --steps 50 --sample-every 10 --run-dir runs/look
  gnfast train {name}{data} --width 0.25 --batch-d 32 --batch-g 32
  gnfast train {name}{data} --impl reference --run-dir runs/double-backward
  gnfast train {name}{data} --steps 100 --profile --run-dir runs/profile
  torchrun --nproc-per-node 4 -m gnfast train {name}{data}

--dry-run prints the settings, the networks and the critic's plan, and exits.
--profile writes RUN/profile.html: where the time of an update goes, of side work and of the first minute.
"""


def run(words: list[str]) -> int:
    """`gnfast train PRESET [--option value …]`."""
    if not words or words[0] in ("-h", "--help"):
        rows = [
            (f"  {next(iter(presets))}", "1 preset" if len(presets) == 1 else f"and {len(presets) - 1} more", title)
            for title, presets in GROUPS.items()
        ]
        print(CHOOSE_HELP.format(count=len(PRESETS), groups=columns(rows)), end="")
        return 0 if words else 2
    name, rest = words[0], [word for word in words[1:] if word not in ("--dry-run", "--profile")]
    if name.startswith("-"):
        raise UsageError(f"train: got {name} first, wanted a preset: gnfast train PRESET --{name.lstrip('-')} …")
    if name not in PRESETS:
        if os.path.exists(expanded(name)):
            raise UsageError(f"train: got a path first, wanted a preset: gnfast train PRESET --data {quote(name)}")
        raise UsageError(unknown("preset", name, PRESETS))
    preset = PRESETS[name]
    data = "" if preset.config.data else " --data PATH"
    help = TRAIN_HELP.format(name=name, summary=preset.summary, data=data)
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")}
    config = of_its_data(parse(Config, rest, f"train {name}", help=help, default=preset.config), preset.config, given)
    for setting, user in without_effect(config, preset.config):
        given = f"{option(setting)} {plain(getattr(config, setting))}"
        processes.here().warn(f"gnfast: {given} has no effect without {user}")
    if config.data:
        require_source(config.data, "--data")
    require_networks(config)
    if "--dry-run" in words:
        return 0 if processes.here().rank else _dry_run(name, config)
    if not config.data:
        raise UsageError(preset.needs)
    from gnfast.train import NonFiniteLossError
    from gnfast.train import train as run
    from gnfast.train.spent import Spent, since_start

    begun = Spent() if "--profile" in words else None
    if begun and (seconds := since_start()) is not None:
        begun.add("Python and imports", seconds)
    try:
        outcome = run(name, config, progress=sys.stderr.isatty(), profile=begun)
    except NonFiniteLossError as error:
        processes.here().fail(f"gnfast: {error}")
        return 1
    if outcome.picture and not processes.here().rank:
        print(f"samples: {outcome.picture}")
    return 0 if outcome.finished else 128 + outcome.signal


def _dry_run(name: str, config: Config) -> int:
    from gnfast.runs.checkpoint import last_step
    from gnfast.train.loop import run_folder
    from gnfast.train.networks import build_networks

    print(f"{name}, dry run: nothing is trained or written, and --data is not read.\n")
    print(columns([(option(setting), plain(value)) for setting, value in as_json(config).items()]))
    generator, critic = build_networks(config)
    for title, net in (("generator", generator), ("critic", critic)):
        count = sum(parameter.numel() for parameter in net.parameters())
        print(f"\n{title}: {type(net).__module__}.{type(net).__name__}, {count:,} parameters", end="")
    print(f"\n\nthe critic's plan for one update, {2 * config.batch_d} images:\n")
    images = torch.zeros(2 * config.batch_d, config.channels, config.resolution, config.resolution)
    labels = [torch.zeros(len(images), dtype=torch.int64)] if config.classes else []
    print(gnfast.trace(critic, images, *labels))
    folder = run_folder(name, config)
    board = ", tensorboard/" if config.tensorboard else ""
    done = last_step(folder / "checkpoints")
    before = f"would continue after step {done}, and " if done < config.steps else f"finished {done} steps; "
    print(
        f"\n{before * bool(done)}would write into {folder}/: config.json, environment.json, log.txt, metrics.jsonl, "
        "speed.jsonl, curves.png, report.html, samples/ema-STEP.png, samples/raw-STEP.png, "
        f"checkpoints/step-STEP.pt{board}"
    )
    return 0
