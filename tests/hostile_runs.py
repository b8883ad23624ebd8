"""Hostile run folders and sweep files: settings, rows, logs, checkpoints, pictures that are damaged, lying or planted.

What is made is a run that was stopped half-way, with one file of it replaced; commands read it or continue it.
"""

import atexit
import functools
import io
import json
import operator
import os
import pickle
import random
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.damage import CONTENT, SPECIAL
from tests.hostile_files import CANARY, HOSTILE, Hostile, chunk, png
from tests.processes import run_python

TRAIN = [
    *("train", "digits", "--resolution=8", "--width=0.1", "--z-dim=5", "--batch-d=4", "--batch-g=6", "--log-every=1"),
    *("--n-samples=4", "--sample-every=2", "--checkpoint-every=2", "--probe-every=2", "--extractor=none"),
    *("--device=cpu", "--no-tensorboard", "--threads=1"),
]
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "report": lambda run: ["report", str(run)],
    "compare": lambda run: ["report", str(run), str(run), "--out", "comparison.html"],
    "sample": lambda run: ["sample", str(run), "--n=4", "--device=cpu"],
    "export": lambda run: ["export", str(run)],
    "analyze": lambda run: ["analyze", str(run), "--what=training", "--n=8", "--device=cpu"],
    "train": lambda run: [*TRAIN, "--steps=6", f"--run-dir={run}"],
}
Damage = Callable[[Path, random.Random], None]


@functools.cache
def _stopped() -> Path:
    """A run of four steps, made in a process of its own: training starts threads, after which none should fork."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = run_python("-m", "gnfast", *TRAIN, "--steps=4", f"--run-dir={folder / 'run'}")
    if made.returncode:
        raise RuntimeError(f"the run to be damaged could not be made: {made.stderr}")
    return folder / "run"


def _damaged(name: str, damage: Damage) -> Callable[[Path, random.Random], Path]:
    def make(folder: Path, rng: random.Random) -> Path:
        run = folder / "run"
        shutil.copytree(_stopped(), run)
        damage(run / name, rng)
        return run

    return make


def _add(kind: str, name: str, damage: Damage, *commands: str) -> None:
    HOSTILE.extend(Hostile(f"{kind}-{command}", _damaged(name, damage), COMMANDS[command]) for command in commands)


# Any file


def _content(make: Callable[[bytes, random.Random], bytes]) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        old = path.read_bytes() if path.is_file() else b""
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make(old, rng))

    return damage


def _replaced(plant: Callable[[Path], None]) -> Damage:
    def damage(path: Path, _rng: random.Random) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        plant(path)

    return damage


ANY: dict[str, Damage] = {
    **{name: _content(CONTENT[name]) for name in ("empty", "zeros", "truncated", "flipped", "noise")},
    **{name: _replaced(SPECIAL[name]) for name in ("pipe", "endless", "folder", "lost-link")},
    "link-to-itself": _replaced(SPECIAL["itself"]),
}
TEXT: dict[str, Damage] = {
    "utf-16": _content(lambda old, rng: old.decode().encode("utf-16")),
    "not-utf-8": _content(lambda old, rng: old[:5] + b'"\xff\xfe\xe9": 1, ' + old[5:]),
    "deep": _content(lambda old, rng: b'{"step": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"),
    "nested": _content(lambda old, rng: b'{"step": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}\n"),
    "long-number": _content(lambda old, rng: b'{"step": ' + b"9" * 10_000 + b"}\n"),
    "list": _content(lambda old, rng: b"[1, 2, 3]\n"),
    "number": _content(lambda old, rng: b"17\n"),
    "null": _content(lambda old, rng: b"null\n"),
    "one-line-of-20-mb": _content(lambda old, rng: b'{"step": 1, "x": "' + b"x" * 20_000_000 + b'"}\n'),
    "many-lists": _content(lambda old, rng: b"[" + b"[],\n" * 4_000_000 + b"[]]"),
}

FILES = {
    "config.json": ("report", "sample", "train"),
    "environment.json": ("report", "train"),
    "metrics.jsonl": ("report", "train"),
}
for _name, _commands in FILES.items():
    for _damage_name, _damage in {**ANY, **TEXT}.items():
        _add(f"{_name}-{_damage_name}", _name, _damage, *_commands)
for _damage_name in ("noise", "pipe", "endless", "folder"):
    for _name in ("log.txt", "speed.jsonl", ".lock", "report.html", "curves.png", "samples", "checkpoints"):
        _add(f"{_name}-{_damage_name}", _name, ANY[_damage_name], "report" if _damage_name == "noise" else "train")

# Links that lead out of the folder: who writes through one makes the canary.
for _name in ("log.txt", "metrics.jsonl", "environment.json", "config.json", "curves.png", ".lock", "report.html"):
    _out = _replaced(lambda path: path.symlink_to(path.parent / ".." / CANARY))
    _add(f"{_name}-leads-out", _name, _out, "train")
for _name in ("report.html", "report.html.partial", "report.html.part", "sample-ema.png", "generator-ema.safetensors"):
    _out = _replaced(lambda path: path.symlink_to(path.parent / ".." / CANARY))
    _command = {"sample-ema.png": "sample", "generator-ema.safetensors": "export"}.get(_name, "report")
    _add(f"{_name}-leads-out", _name, _out, _command)

# Settings


def _settings(**changes: Any) -> Damage:
    def damage(path: Path, _rng: random.Random) -> None:
        known = json.loads(path.read_text())
        known["config"] |= changes
        path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))

    return damage


SETTINGS: dict[str, dict[str, Any]] = {
    "width-of-millions": {"width": 1e7},
    "width-beyond-float": {"width": 1e300},
    "no-width": {"width": None},
    "resolution-of-billions": {"resolution": 2**40},
    "batch-of-billions": {"batch_g": 10**12},
    "latents-of-billions": {"z_dim": 2**40},
    "words-for-numbers": {"batch_g": "many", "steps": "all"},
    "numbers-for-words": {"model": 7, "data": 3, "preset": 9},
    "model-unknown": {"model": "os.system"},
    "lists-in-lists": {"betas": [[[0.5]], {}]},
    "steps-negative": {"steps": -5},
    "steps-beyond-64-bits": {"steps": 10**30},
    "setting-unknown": {"magic": True},
    "other-classes": {"classes": 10**9},
    "data-is-a-pipe": {"data": "/dev/stdin"},
}
for _kind, _changes in SETTINGS.items():
    _add(f"settings-{_kind}", "config.json", _settings(**_changes), "report", "sample", "analyze")
_add("settings-none", "config.json", _content(lambda old, rng: b'{"preset": "digits"}'), "report", "sample", "train")
_odd = _content(lambda old, rng: b'{"preset": [], "config": {}}')
_add("settings-preset-list", "config.json", _odd, "compare", "train")

# Rows

ROWS = {
    "step-word": '{"step": "four", "loss_generator": 1}',
    "step-negative": '{"step": -1, "loss_generator": 1}',
    "step-true": '{"step": true, "loss_generator": 1}',
    "step-beyond-64-bits": f'{{"step": {10**40}, "loss_generator": 1}}',
    "no-step": '{"loss_generator": 1}',
    "loss-word": '{"step": 1, "loss_generator": "low", "distance_ema": "lower"}',
    "loss-list": '{"step": 1, "loss_generator": [1], "distance_ema": {"a": 1}}',
    "loss-nan": '{"step": 1, "loss_generator": NaN, "loss_real": Infinity, "distance_ema": -Infinity}',
    "loss-huge": '{"step": 1, "loss_generator": 1e308}\n{"step": 2, "loss_generator": -1e308}',
    "loss-tiny": '{"step": 1, "loss_generator": 0}\n{"step": 2, "loss_generator": 5e-324}',
    "loss-integer-of-1000-digits": '{"step": 1, "loss_generator": %s}' % ("9" * 1000),
    "one-distance": '{"step": 1, "loss_generator": 1, "distance_ema": 0}',
    "probe-half": '{"step": 2, "grad_norm_real_median": 1, "omega_min": "x", "sigma/a": "y"}',
    "extractor-list": '{"step": 1, "loss_generator": 1, "distance_ema": 1, "extractor": [[[]]], "n_real": {}}',
    "spaces": " \n\t\n \n",
}
for _kind, _text in ROWS.items():
    _lines = _content(lambda old, rng, text=_text: text.encode() + b"\n")
    _add(f"rows-{_kind}", "metrics.jsonl", _lines, "report", "analyze", "train")
_sessions = json.dumps([{"started": [1], "command": {"a": 1}, "device": None}, 3, [], {"command": [[["x"]]]}])
_add("sessions-odd", "environment.json", _content(lambda old, rng: _sessions.encode()), "report", "train")

# Checkpoints

NEWEST = "checkpoints/step-000000004.pt"


class _Code:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {CANARY}",)


def _changed(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """A checkpoint that is whole, with something else in it; the one before is gone."""

    def damage(path: Path, _rng: random.Random) -> None:
        content = torch.load(path, weights_only=True)
        changed = change(content)
        for old in path.parent.iterdir():
            old.unlink()
        torch.save(content if changed is None else changed, path)

    return damage


def _set(*keys: Any, value: Any) -> Damage:
    def change(content: dict[str, Any]) -> None:
        place = functools.reduce(operator.getitem, keys[:-1], content)
        place[keys[-1]] = value(place[keys[-1]]) if callable(value) else value

    return _changed(change)


def _weights(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return _set("state", name, value=lambda weights: {key: change(weight) for key, weight in weights.items()})


def _without(*keys: Any) -> Damage:
    def change(content: dict[str, Any]) -> None:
        del functools.reduce(operator.getitem, keys[:-1], content)[keys[-1]]

    return _changed(change)


def _rezipped(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Damage:
    """A checkpoint whose archive was taken apart and put together again: its checksums are right."""

    def damage(path: Path, _rng: random.Random) -> None:
        with zipfile.ZipFile(path) as archive:
            parts = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        for old in path.parent.iterdir():
            old.unlink()
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in parts:
                archive.writestr(name, change(name, data))

    return damage


def _pickled(path: Path, _rng: random.Random) -> None:
    path.write_bytes(pickle.dumps(_Code()))


def _zipped_code(path: Path, _rng: random.Random) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Code(), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def _expanded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten()[:1].as_strided(tensor.shape, [0] * tensor.dim())


WEIGHT = ("state", "optim_d", "state", 0)
CHECKPOINTS: dict[str, Damage] = {
    **ANY,
    "pickled-code": _pickled,
    "zipped-code": _zipped_code,
    "zip-of-nothing": _content(lambda old, rng: b"PK\x05\x06" + bytes(18)),
    "text": _content(lambda old, rng: b"a checkpoint\n" * 100),
    "compressed": _rezipped(lambda name, data: data, zipfile.ZIP_DEFLATED),
    "bomb": _rezipped(lambda n, d: bytes(1 << 30) if n.endswith("/data/0") else d, zipfile.ZIP_DEFLATED),
    "data-short": _rezipped(lambda n, d: d[:-4] if "/data/0" in n else d),
    "data-missing": _rezipped(lambda n, d: b"" if "/data/" in n else d),
    "description-noise": _rezipped(lambda n, d: random.Random(1).randbytes(len(d)) if n.endswith("data.pkl") else d),
    "description-cut": _rezipped(lambda n, d: d[: len(d) // 2] if n.endswith("data.pkl") else d),
    "numbers-larger": _rezipped(lambda n, d: d.replace(b"K\x04", b"K\xff") if n.endswith("data.pkl") else d),
    "byteorder-big": _rezipped(lambda n, d: b"big" if n.endswith("byteorder") else d),
    "a-list": _changed(lambda content: [1, 2, 3]),
    "a-tensor": _changed(lambda content: torch.zeros(3)),
    "nothing-in-it": _changed(lambda content: {"preset": "digits", "data": "", "state": {}}),
    "other-preset": _set("preset", value="gngan-cifar10-cnn"),
    "other-data": _set("data", value="0" * 64),
    "other-settings": _set("config", value={"lr_d": [[[]]], "z_dim": torch.zeros(3)}),
    "step-word": _set("state", "step", value="four"),
    "step-negative": _set("state", "step", value=-4),
    "step-beyond-64-bits": _set("state", "step", value=10**30),
    "no-generator": _without("state", "generator"),
    "generator-list": _set("state", "generator", value=[1, 2]),
    "weight-of-another-shape": _weights("critic", lambda v: v.repeat(2) if v.dim() == 1 else v),
    "weights-all-in-one-place": _weights("ema", lambda v: _expanded(v) if v.dim() else v),
    "weights-sparse": _weights("generator", lambda v: v.to_sparse() if v.dim() > 1 else v),
    "weights-complex": _weights("generator", lambda v: v.to(torch.complex64)),
    "weights-nan": _weights("critic", lambda v: v * float("nan") if v.is_floating_point() else v),
    "moment-of-another-shape": _set(*WEIGHT, "exp_avg", value=torch.zeros(1)),
    "moment-of-no-element": _set(*WEIGHT, "exp_avg_sq", value=torch.zeros(0)),
    "moment-all-in-one-place": _set(*WEIGHT, "exp_avg", value=_expanded),
    "moment-of-integers": _set(*WEIGHT, "exp_avg", value=lambda m: m.to(torch.int64)),
    "moment-a-number": _set(*WEIGHT, "exp_avg", value=3),
    "moment-missing": _without(*WEIGHT, "exp_avg"),
    "moment-unknown": _set(*WEIGHT, "max_exp_avg_sq", value=torch.zeros(1)),
    "optimiser-step-a-list": _set(*WEIGHT, "step", value=[1]),
    "optimiser-step-of-many": _set(*WEIGHT, "step", value=torch.zeros(7)),
    "optimiser-of-more-weights": _set("state", "optim_d", "state", 999, value={}),
    "optimiser-a-list": _set("state", "optim_g", value=[]),
    "rates-words": _set("state", "optim_g", "param_groups", value=[{"lr": "x", "params": "y"}]),
    "place-outside": _set("state", "batches", "position", value=10**9),
    "place-a-word": _set("state", "batches", "position", value="end"),
    "place-a-half": _set("state", "batches", "position", value=0.5),
    "order-noise": _set("state", "batches", "generator", value=torch.arange(5056).to(torch.uint8)),
    "noise-short": _set("state", "noise", value=torch.zeros(3, dtype=torch.uint8)),
    "noise-floating": _set("state", "noise", value=torch.zeros(5056)),
    "pending-long": _set("state", "pending", value=[torch.zeros(999)]),
    "pending-words": _set("state", "pending", value=["a"]),
}
for _kind, _damage in CHECKPOINTS.items():
    _add(f"checkpoint-{_kind}", NEWEST, _damage, "sample", "train")

# Pictures


def _gif() -> bytes:
    data = io.BytesIO()
    Image.new("L", (9, 9)).save(data, "GIF")
    return data.getvalue()


PICTURES = {
    "of-60000-pixels": png(60_000, 60_000),
    "of-12000-pixels": png(12_000, 12_000),
    "of-2-billion-pixels": png(2**31 - 1, 1),
    "of-none": png(0, 0),
    "with-a-text-bomb": png(8, 8, extra=chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 28)))),
    "short": png(500, 500, content=zlib.compress(bytes(1000))),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch " + CANARY.encode() + b") (w) file\n",
    "gif": _gif(),
}
for _kind, _bytes in PICTURES.items():
    _add(f"picture-{_kind}", "samples/ema-000002.png", _content(lambda old, rng, data=_bytes: data), "report")
for _kind in ("empty", "truncated", "flipped", "noise", "pipe", "endless", "folder", "link-to-itself"):
    _add(f"picture-{_kind}", "samples/ema-000002.png", ANY[_kind], "report")

# Sweep files


def _sweep(text: str | bytes) -> Callable[[Path, random.Random], Path]:
    def make(folder: Path, _rng: random.Random) -> Path:
        path = folder / "sweep.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def _grid(count: int, axes: str = "seed") -> str:
    values = list(range(count))
    return 'preset = "digits"\n[grid]\n' + "".join(f"{axis} = {values}\n" for axis in axes.split())


HEAD = 'preset = "digits"\n'
SWEEPS: dict[str, str | bytes] = {
    "empty": b"",
    "zeros": bytes(1000),
    "not-utf-8": b'preset = "\xff\xfe"',
    "utf-16": HEAD.encode("utf-16"),
    "deep": HEAD + "x = " + "[" * 100_000,
    "deep-tables": HEAD + "x = " + "{a = " * 5_000 + "1" + "}" * 5_000,
    "long": HEAD + "# " + "x" * 20_000_000,
    "runs-without-end": _grid(1000, "seed n_dis batch_d batch_g steps"),
    "name-up": HEAD + '[[case]]\nname = ".."\n',
    "name-of-a-folder": HEAD + '[[case]]\nname = "output"\n',
    "name-long": HEAD + f'[[case]]\nname = "{"x" * 5000}"\n',
    "name-with-slashes": HEAD + '[[case]]\nname = "../../etc/x"\n',
    "name-number": HEAD + "[[case]]\nname = 3\n",
    "preset-list": HEAD + '[grid]\npreset = [["digits"]]\n',
    "preset-table": "[preset]\na = 1\n",
    "value-table": HEAD + "[base]\nsteps = {a = 1}\n",
    "value-date": HEAD + "[base]\nsteps = 2020-01-01\n",
    "value-nan": HEAD + "[base]\nlr_d = nan\n",
    "value-inf": HEAD + "[base]\nwidth = inf\n",
    "value-beyond-64-bits": HEAD + f"[base]\nsteps = {10**30}\n",
    "value-true": HEAD + "[base]\nsteps = true\n",
    "betas-three": HEAD + "[base]\nbetas = [0.1, 0.2, 0.3]\n",
    "betas-words": HEAD + '[base]\nbetas = ["a", "b"]\n',
    "out-nul": HEAD + 'out = "a\\u0000b"\n',
    "out-home-of-nobody": HEAD + 'out = "~nobody-of-that-name/x"\n',
    "data-pipe": HEAD + '[base]\ndata = "/dev/stdin"\nloss = "what"\n',
    "grid-lists": HEAD + "[grid]\nbetas = [[0.5, 0.9], [[1]]]\n",
    "processes-many": HEAD + "[run]\nprocesses = 1.5\n",
    "devices-numbers": HEAD + "[run]\ndevices = [1]\n",
}


def _dry(path: Path) -> list[str]:
    return ["sweep", str(path), "--dry-run"]


for _kind, _text in SWEEPS.items():
    HOSTILE.append(Hostile(f"sweep-{_kind}", _sweep(_text), _dry))
HOSTILE.append(Hostile("sweep-100000-runs", _sweep(_grid(100_000)), _dry))


def _planted(damage: Damage, folder: Path, rng: random.Random) -> Path:
    damage(folder / "sweep.toml", rng)
    return folder / "sweep.toml"


for _kind in ("pipe", "endless", "folder", "lost-link"):
    HOSTILE.append(Hostile(f"sweep-{_kind}", functools.partial(_planted, ANY[_kind]), _dry))


def _begun(damage: Damage, folder: Path, rng: random.Random) -> Path:
    path = folder / "sweep.toml"
    path.write_text(HEAD + 'out = "out"\n')
    (folder / "out" / "run").mkdir(parents=True)
    (folder / "out" / "sweep.json").write_text('{"run": {"status": "failed"}}')
    damage(folder / "out" / "sweep.json", rng)
    return path


ENDS = {**ANY, "list": TEXT["list"], "deep": TEXT["deep"], "null": TEXT["null"]}
for _kind, _damage in ENDS.items():
    _made = functools.partial(_begun, _damage)
    HOSTILE.append(Hostile(f"sweep.json-{_kind}", _made, lambda path: ["sweep", str(path), "--table"]))
