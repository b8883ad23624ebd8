"""Hostile files of what scores are computed from: statistics, generators, checkpoints of other codes, weights."""

import io
import json
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from gnfast import models
from gnfast.config.config import Config, as_json
from gnfast.runs import checkpoint
from gnfast.train.export import _digest
from tests.damage import CONTENT, SPECIAL
from tests.hostile_files import CANARY, HOSTILE, TOUCH, Code, Hostile

DIM = 6
_SIZES = {"resolution": 8, "channels": 1, "width": 0.1, "z_dim": 5, "batch_d": 4, "batch_g": 4, "n_samples": 4}
CONFIG = Config(data="digits", model="small", n_fake=8, extractor=f"{__name__}:planted", **_SIZES)


def planted(images: torch.Tensor) -> torch.Tensor:
    """An extractor that only files name."""
    Path(CANARY).touch()
    return images.flatten(1).float()


RUNS_CODE = {
    "system": TOUCH,
    "open": Code(open, CANARY, "w"),
    "eval": Code(eval, f"open({CANARY!r}, 'w')"),
    "attribute": Code(getattr, Code(__import__, "os"), "system"),
    "path": Code(Path.touch, Path(CANARY)),
}


def _statistics(draw: random.Random) -> dict[str, np.ndarray]:
    """Arrays as gnfast saves them."""
    features = np.random.default_rng(draw.randrange(1 << 30)).normal(size=(40, DIM))
    return {
        "mu": features.mean(0),
        "sigma": np.cov(features.T),
        "n": np.int64(40),
        "kept": features[:20].astype(np.float32),
        "score": np.array([2.0, 0.1]),
        "extractor": np.array(f"{__name__}:planted"),
        "shape": np.array("1x8x8"),
    }


def _npz(change: Callable[[dict, random.Random], Any], folder: Path, draw: random.Random) -> Path:
    arrays = _statistics(draw)
    change(arrays, draw)
    path = folder / "s.npz"
    np.savez(path, **arrays)
    return path


def _as_it_is(content: dict, draw: random.Random) -> None:
    pass


def _set(**values: Any) -> Callable[[dict, random.Random], None]:
    def change(content: dict, draw: random.Random) -> None:
        for name, value in values.items():
            content[name] = value(draw) if callable(value) and not isinstance(value, torch.nn.Module) else value

    return change


def _without(name: str) -> Callable[[dict, random.Random], None]:
    return lambda content, draw: content.pop(name)


def _scaled(by: Callable[[np.ndarray, random.Random], np.ndarray]) -> Callable[[dict, random.Random], None]:
    return lambda arrays, draw: arrays.update(sigma=by(arrays["sigma"], draw))


def _one_entry(value: float) -> Callable[[np.ndarray, random.Random], np.ndarray]:
    def change(sigma: np.ndarray, draw: random.Random) -> np.ndarray:
        sigma[draw.randrange(DIM), draw.randrange(DIM)] = value
        return sigma

    return change


STATISTICS = {
    "negative": _scaled(lambda sigma, draw: -sigma),
    "indefinite": _scaled(lambda sigma, draw: sigma - draw.uniform(0.5, 3) * np.eye(DIM)),
    "asymmetric": _scaled(lambda sigma, draw: np.triu(sigma) + draw.uniform(0.1, 9) * np.eye(DIM, k=1)),
    "complex": _scaled(lambda sigma, draw: sigma + draw.uniform(0.1, 9) * 1j),
    "sigma-nan": _scaled(_one_entry(float("nan"))),
    "sigma-infinite": _scaled(_one_entry(float("inf"))),
    "sigma-huge": _scaled(_one_entry(1e308)),
    "sigma-flat": _scaled(lambda sigma, draw: sigma.ravel()),
    "sigma-of-another-size": _scaled(lambda sigma, draw: np.eye(DIM + draw.randrange(1, 9))),
    "sigma-deep": _scaled(lambda sigma, draw: sigma.reshape((1,) * draw.randrange(1, 20) + sigma.shape)),
    "sigma-text": _scaled(lambda sigma, draw: sigma.astype(str)),
    "sigma-bytes": _scaled(lambda sigma, draw: sigma.astype("S32")),
    "sigma-truth": _scaled(lambda sigma, draw: sigma > 0),
    "sigma-dates": _scaled(lambda sigma, draw: sigma.astype("M8[s]")),
    "sigma-records": _scaled(lambda sigma, draw: sigma.astype([("a", "f8"), ("b", "f8")])),
    "sigma-half": _scaled(lambda sigma, draw: -sigma.astype(np.float16)),
    "sigma-other-end": _scaled(lambda sigma, draw: -sigma.astype(">f8")),
    "sigma-empty": _set(mu=np.zeros(0), sigma=np.zeros((0, 0))),
    "mu-nan": _set(mu=lambda draw: np.full(DIM, np.nan)),
    "mu-scalar": _set(mu=np.float64(1)),
    "mu-complex": _set(mu=np.full(DIM, 1j)),
    "mu-objects": _set(mu=np.array([RUNS_CODE["system"]] * DIM, dtype=object)),
    "no-mu": _without("mu"),
    "no-sigma": _without("sigma"),
    "n-zero": _set(n=0),
    "n-negative": _set(n=lambda draw: -draw.randrange(1, 99)),
    "n-fraction": _set(n=2.5),
    "n-nan": _set(n=float("nan")),
    "n-text": _set(n="many"),
    "n-array": _set(n=np.arange(3)),
    "n-huge": _set(n=np.uint64(2**64 - 1)),
    "n-objects": _set(n=np.array(RUNS_CODE["open"], dtype=object)),
    "kept-nan": _set(kept=np.full((9, DIM), np.nan, np.float32)),
    "kept-double": _set(kept=np.zeros((9, DIM))),
    "kept-wide": _set(kept=lambda draw: np.zeros((9, DIM + draw.randrange(1, 9)), np.float32)),
    "kept-empty": _set(kept=np.zeros((0, DIM), np.float32)),
    "kept-deep": _set(kept=np.zeros((9, DIM, 1), np.float32)),
    "kept-more-than-n": _set(kept=np.zeros((41, DIM), np.float32)),
    "kept-objects": _set(kept=np.array([[RUNS_CODE["eval"]]], dtype=object)),
    "score-text": _set(score="good"),
    "score-nan": _set(score=np.array([np.nan, 1])),
    "score-long": _set(score=np.arange(9.0)),
    "extractor-number": _set(extractor=3.5),
    "extractor-list": _set(extractor=np.array(["a", "b"])),
    "extractor-long": _set(extractor="x" * 100_000),
    "extractor-objects": _set(extractor=np.array(RUNS_CODE["path"], dtype=object)),
    "extractor-surrogate": _set(extractor=np.frombuffer(struct.pack("<I", 0x7FFFFFFF), "<U1")[0:1].reshape(())),
    "protocol-unknown": _set(protocol="../../etc"),
    "shape-lies": _set(shape="99999999x99999999"),
}


def _raw_npz(
    members: Callable[[random.Random], dict[str, bytes]],
    folder: Path,
    draw: random.Random,
    compression: int = zipfile.ZIP_DEFLATED,
) -> Path:
    path = folder / "s.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members(draw).items():
            archive.writestr(name, content)
    return path


def _compressed_npz(compression: int, folder: Path, draw: random.Random) -> Path:
    return _raw_npz(lambda d: {"mu.npy": _member((1,), data=bytes(8))}, folder, draw, compression)


def _member(shape: tuple, descr: str = "<f8", data: bytes = b"") -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
    return head.getvalue() + data


def _header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text.encode()


_ZEROS = bytes(1 << 26)
RAW_STATISTICS: dict[str, Callable[[random.Random], dict[str, bytes]]] = {
    "claims-terabytes": lambda d: {"mu.npy": _member((d.randrange(10**11, 10**12),)), "sigma.npy": _member((2, 2))},
    "claims-more-than-integers": lambda d: {"mu.npy": _member((2**62, 2**62, 2**62)), "sigma.npy": _member((1,))},
    "claims-negative": lambda d: {"mu.npy": _header("{'descr': '<f8', 'fortran_order': False, 'shape': (-8,)}\n")},
    "bomb": lambda d: {
        "mu.npy": _member((10**4,), data=bytes(80000)),
        "sigma.npy": _member((10**4, 10**4), data=_ZEROS),
    },
    "bomb-that-keeps-its-word": lambda d: {
        "mu.npy": _member((1 << 24,), data=_ZEROS + _ZEROS),
        "sigma.npy": _member((1 << 24,), data=_ZEROS + _ZEROS),
        "kept.npy": _member((1 << 25,), "<f4", data=_ZEROS + _ZEROS),
    },
    "header-bomb": lambda d: {"mu.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * (1 << 24)},
    "header-deep": lambda d: {"mu.npy": _header("(" * d.randrange(1000, 9000) + "\n")},
    "header-code": lambda d: {"mu.npy": _header(f"{{'descr': open('{CANARY}', 'w'), 'shape': ()}}\n")},
    "header-pickle": lambda d: {"mu.npy": pickle.dumps(RUNS_CODE["system"]), "sigma.npy": pickle.dumps(0)},
    "header-version": lambda d: {"mu.npy": _header("{}", (d.randrange(3, 99), 0))},
    "header-of-what-is-none": lambda d: {
        "mu.npy": _header("{'descr': 'nonsense', 'fortran_order': 7, 'shape': 'x'}\n")
    },
    "descr-of-objects": lambda d: {"mu.npy": _member((1,), "|O", pickle.dumps(RUNS_CODE["open"])), "sigma.npy": b""},
    "descr-of-nothing": lambda d: {"mu.npy": _member((10**9,), "|S0"), "sigma.npy": _member((1,), "|S0")},
    "descr-of-a-gigabyte": lambda d: {"mu.npy": _member((1,), "|S1000000000"), "sigma.npy": _member((1,))},
    "too-short": lambda d: {"mu.npy": _member((99,), data=bytes(d.randrange(1, 790))), "sigma.npy": _member((1,))},
    "too-long": lambda d: {"mu.npy": _member((1,), data=bytes(8)), "sigma.npy": _member((1, 1), data=bytes(9999))},
    "many-members": lambda d: {f"{i}.npy": b"" for i in range(20_000)},
    "names-of-elsewhere": lambda d: {"../../mu.npy": b"", "/etc/mu.npy": b"", "mu.npy": b""},
    "empty-members": lambda d: {"mu.npy": b"", "sigma.npy": b""},
}


def _damaged(good: Callable[[Path, random.Random], Path], how: str, folder: Path, draw: random.Random) -> Path:
    """A good file, and what may happen to it."""
    path = good(folder, draw)
    path.write_bytes(CONTENT[how](path.read_bytes(), draw))
    return path


DAMAGES = [how for how in CONTENT if how not in ("zeros", "overwritten", "filled", "repeated")]


def _special(name: str, how: str, folder: Path, _draw: random.Random) -> Path:
    """What is not a regular file, or not one that can be read."""
    SPECIAL[how](folder / name)
    return folder / name


SPECIALS = [name for name in SPECIAL if name != "lost-link"]


def _state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        return models.build("small", resolution=8, channels=1, z_dim=5, width=0.1)[0].state_dict()


def _about(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    about = {"gnfast": "0.1", "weights": "ema", "preset": "digits", "step": 3, "scores": {}, "sha256": _digest(state)}
    return as_json(CONFIG) | about


def _safetensors(change: Callable[[dict, random.Random], Any], folder: Path, draw: random.Random) -> Path:
    """An exported generator whose metadata were changed; with `weights` among the changes, its tensors."""
    content = {"state": _state()}
    content["about"] = _about(content["state"])
    change(content["about"], draw)
    state = content["about"].pop("state", content["state"])
    metadata = {name: v if isinstance(v, Text) else json.dumps(v) for name, v in content["about"].items()}
    path = folder / "G.safetensors"
    path.write_bytes(save(state, metadata))
    return path


class Text(str):
    """A value of the metadata as it is, rather than as JSON."""


def _tensors(
    change: Callable[[dict, random.Random], Any], resealed: bool = True
) -> Callable[[dict, random.Random], None]:
    """Other tensors than the settings describe, with the right checksum if `resealed`."""

    def changed(about: dict, draw: random.Random) -> None:
        state = _state()
        change(state, draw)
        about["state"] = state
        if resealed:
            about["sha256"] = _digest(state)

    return changed


_FIRST = next(iter(_state()))
EXPORTED = {
    "resolution-text": _set(resolution="8"),
    "resolution-huge": _set(resolution=lambda draw: 4 * draw.randrange(10**6, 10**12)),
    "resolution-beyond-integers": _set(resolution=10**300),
    "resolution-negative": _set(resolution=-8),
    "resolution-list": _set(resolution=[8, 8]),
    "resolution-nothing": _set(resolution=None),
    "width-huge": _set(width=lambda draw: draw.uniform(1e3, 1e12)),
    "width-infinite": _set(width=float("inf")),
    "width-nan": _set(width=float("nan")),
    "width-truth": _set(width=True),
    "z-dim-huge": _set(z_dim=lambda draw: draw.randrange(10**6, 10**12)),
    "channels-huge": _set(channels=10**9),
    "classes-huge": _set(classes=10**9, model="biggan"),
    "batch-huge": _set(batch_g=10**9),
    "batch-zero": _set(batch_g=0),
    "n-fake-endless": _set(n_fake=10**15),
    "model-unknown": _set(model="../../model"),
    "model-number": _set(model=7),
    "model-other": _set(model="dcgan"),
    "sample-bn-unknown": _set(sample_bn="none"),
    "betas-short": _set(betas=[0.1]),
    "betas-text": _set(betas="00"),
    "weights-unknown": _set(weights="best"),
    "weights-list": _set(weights=["ema"]),
    "step-text": _set(step="3"),
    "step-huge": _set(step=10**300),
    "step-nothing": _set(step=None),
    "scores-list": _set(scores=[1, 2]),
    "scores-deep": _set(scores=Text("[" * 100_000)),
    "json-none": _set(width=Text("{")),
    "json-digits": _set(step=Text("9" * 100_000)),
    "json-two": _set(step=Text("3 4")),
    "no-resolution": _without("resolution"),
    "no-step": _without("step"),
    "no-version": _without("gnfast"),
    "no-checksum": _without("sha256"),
    "checksum-number": _set(sha256=3),
    "extractor-code": _set(extractor=f"{__name__}:planted"),
    "extractor-system": _set(extractor="os:system"),
    "extractor-weights-device": _set(extractor="inception", extractor_weights="/dev/zero"),
    "data-device": _set(data="/dev/zero"),
    "data-elsewhere": _set(data="../../../../etc"),
    "data-number": _set(data=3),
    "tensor-missing": _tensors(lambda state, draw: state.pop(_FIRST)),
    "tensor-more": _tensors(lambda state, draw: state.update({"extra" * 99: torch.zeros(3)})),
    "tensor-shape": _tensors(lambda state, draw: state.update({_FIRST: torch.zeros(draw.randrange(1, 99))})),
    "tensor-nan": _tensors(lambda state, draw: state[_FIRST].view(-1)[0].fill_(float("nan"))),
    "tensor-integers": _tensors(lambda state, draw: state.update({_FIRST: state[_FIRST].int()})),
    "tensor-complex": _tensors(lambda state, draw: state.update({_FIRST: state[_FIRST].to(torch.complex64)})),
    "tensor-eighth": _tensors(lambda state, draw: state.update({_FIRST: state[_FIRST].to(torch.float8_e4m3fn)})),
    "tensor-empty": _tensors(lambda state, draw: state.update({_FIRST: torch.zeros(0)})),
    "tensor-none": _tensors(lambda state, draw: state.clear()),
    "tensor-other": _tensors(lambda state, draw: state[_FIRST].add_(1), resealed=False),
}


def _safetensors_header(change: Callable[[random.Random], bytes], folder: Path, draw: random.Random) -> Path:
    path = folder / "G.safetensors"
    path.write_bytes(change(draw))
    return path


def _framed(header: bytes, size: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def _claimed(data: bytes, **tensors: tuple[str, list[int], list[int]]) -> bytes:
    """With the dtype, the shape and the place in the data that each tensor claims."""
    keys = ("dtype", "shape", "data_offsets")
    header = {name: dict(zip(keys, claims, strict=True)) for name, claims in tensors.items()}
    return _framed(json.dumps(header).encode(), data=data)


HEADERS = {
    "header-endless": lambda draw: _framed(b"{}", 2**63),
    "header-larger-than-the-file": lambda draw: _framed(b"{}", draw.randrange(99, 10**8)),
    "header-empty": lambda draw: _framed(b""),
    "header-list": lambda draw: _framed(b"[]"),
    "header-deep": lambda draw: _framed(b"[" * draw.randrange(1000, 100_000)),
    "header-no-text": lambda draw: _framed(b"\xff" * draw.randrange(1, 999)),
    "header-metadata-list": lambda draw: _framed(b'{"__metadata__":["gnfast"]}'),
    "header-overlapping": lambda draw: _claimed(bytes(8), a=("F32", [2], [0, 8]), b=("F32", [2], [0, 8])),
    "header-beyond": lambda draw: _claimed(bytes(8), a=("F32", [10**12], [0, 4 * 10**12])),
    "header-negative": lambda draw: _claimed(bytes(4), a=("F32", [-1], [0, 4])),
    "header-of-another-size": lambda draw: _claimed(bytes(4), a=("F64", [3], [0, 4])),
    "header-dtype": lambda draw: _claimed(bytes(4), a=("O", [1], [0, 4])),
    "header-twice": lambda draw: _framed(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 2 + b'"b":0}', data=b"1"
    ),
}


def _published_state(role: int) -> dict[str, torch.Tensor]:
    """A state of the papers' CNN whose numbers are one each, seen many times."""
    with torch.device("meta"):
        shapes = models.build("dcgan", resolution=32)[role].state_dict()
    return {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in shapes.items()}


def _published(change: Callable[[dict, random.Random], Any], folder: Path, draw: random.Random) -> Path:
    content = {"net_G": _published_state(0), "ema_G": _published_state(0), "net_D": _published_state(1), "step": 7}
    change(content, draw)
    path = folder / "model.pt"
    torch.save(content, path)
    return path


def _in(key: str, **values: Any) -> Callable[[dict, random.Random], None]:
    return lambda content, draw: _set(**values)(content[key], draw)


def _changed(name: str, value: Any) -> Callable[[dict, random.Random], None]:
    def change(content: dict, draw: random.Random) -> None:
        for key in ("net_G", "ema_G"):
            content[key][name] = value(content[key][name]) if callable(value) else value

    return change


def _faster(critic: dict) -> Callable[[dict, random.Random], None]:
    """A critic in the other code's format."""

    def change(content: dict, draw: random.Random) -> None:
        content.clear()
        content["D"] = critic

    return change


def _many(*shape: int) -> torch.Tensor:
    """One zero, seen many times."""
    return torch.zeros(()).expand(shape)


def _quantised(value: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(value.shape), 0.1, 0, torch.qint8)


_LAYER = "linear.weight"


def _itself(content: dict, draw: random.Random) -> None:
    content["net_G"]["self"] = content


def _laughs(content: dict, draw: random.Random) -> None:
    for _ in range(60):
        content["net_G"] = {"a": content["net_G"], "b": content["net_G"]}


PUBLISHED = {
    **{f"code-{name}": _set(best_FID=code) for name, code in RUNS_CODE.items()},
    "dtype-crafted": _set(best_FID=Code(np.dtype, "f8", False, True, state=(3, "<", None, None, None, 10**6, 1, 0))),
    "array": _set(best_FID=np.zeros(3)),
    "module": _set(net_G=torch.nn.Linear(2, 2)),
    "state-list": _set(net_G=[1, 2]),
    "state-nothing": _set(ema_G=None),
    "state-empty": _set(net_G={}, ema_G={}, net_D={}),
    "state-of-numbers": _set(ema_G={"linear.weight": 3}),
    "state-of-states": _set(ema_G={"a": {"b": torch.zeros(1)}}),
    "state-itself": _itself,
    "state-of-laughs": _laughs,
    "keys-numbers": _set(ema_G={3: torch.zeros(1)}),
    "keys-long": _set(ema_G={"main." + "9" * 5000 + ".gamma": torch.zeros(1)}),
    "keys-code": _set(ema_G={"__class__": torch.zeros(1), "forward": torch.zeros(1)}),
    "keys-dots": _set(ema_G={"." * 150: torch.zeros(1), "blocks.": torch.zeros(1)}),
    "keys-module": _set(ema_G={"module." * 20: torch.zeros(1)}),
    "numbers-10e12": _changed(_LAYER, _many(10**12)),
    "numbers-10e18": _changed(_LAYER, _many(10**18)),
    "singular-vector-huge": _set(net_D={"main.0.weight_u": _many(1 << 26), "main.0.weight_orig": torch.zeros(1)}),
    "scales-outer": _faster(
        {"main.0.module.weight_raw": _many(1 << 13, 1), "main.0.module.weight_scale": _many(1 << 13)}
    ),
    "scales-many": _faster({f"main.{i}.module.weight_scale": torch.ones(()) for i in range(3000)}),
    "scales-without-layers": _faster({"linear.module.weight_scale": torch.ones(()), "main.9.gamma": torch.ones(())}),
    "meta": _changed(_LAYER, lambda value: value.to("meta")),
    "sparse-tensor": _changed(_LAYER, lambda value: torch.zeros(value.shape).to_sparse()),
    "quantised": _changed(_LAYER, _quantised),
    "integers": _changed(_LAYER, lambda value: value.int()),
    "complex": _changed(_LAYER, lambda value: value.to(torch.complex64)),
    "truth": _changed(_LAYER, lambda value: value.bool()),
    "nan": _changed(_LAYER, lambda value: value + float("nan")),
    "no-channels": _changed("main.11.weight", torch.zeros(64, 0, 3, 3)),
    "channels-10e6": _changed("main.11.weight", _many(64, 10**6, 3, 3)),
    "z-dim-0": _changed(_LAYER, torch.zeros(8192, 0)),
    "z-dim-10e4": _changed(_LAYER, _many(8192, 10**4)),
    "dimensions": _changed(_LAYER, torch.zeros((1,) * 60)),
    "step-text": _set(step="seven"),
    "step-huge": _set(step=10**300),
    "step-infinite": _set(step=float("inf")),
    "step-tensor": _set(step=torch.zeros(3)),
    "fixed-z-scalar": _set(fixed_z=torch.zeros(())),
    "two-formats": _set(G={}, model_state_dict={"l1.weight": torch.zeros(1)}),
}


def _plain(name: str, value: Any, folder: Path, draw: random.Random) -> Path:
    torch.save(value, folder / name)
    return folder / name


def _zipped(change: Callable[[str, bytes], tuple[str, bytes] | None], folder: Path, draw: random.Random) -> Path:
    """A checkpoint whose zip members were changed and compressed."""
    inner = _published(_as_it_is, folder, draw)
    with zipfile.ZipFile(inner) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(inner, "w") as archive:
        for name, content in members:
            if made := change(name, content):
                archive.writestr(*made, zipfile.ZIP_DEFLATED if len(made[1]) > 1 << 20 else zipfile.ZIP_STORED)
    return inner


_CALL = pickle.dumps(TOUCH, 2)
ZIPPED = {
    "record-bomb": lambda name, content: (name, _ZEROS if name.endswith("data/0") else content),
    "pickle-bomb": lambda name, content: (name, content + _ZEROS if name.endswith(".pkl") else content),
    "pickle-missing": lambda name, content: None if name.endswith(".pkl") else (name, content),
    "pickle-noise": lambda name, content: (name, b"\x80\x02" + content[9:] if name.endswith(".pkl") else content),
    "pickle-code": lambda name, content: (name, _CALL if name.endswith(".pkl") else content),
    "records-missing": lambda name, content: None if "/data/" in name else (name, content),
    "version": lambda name, content: (name, b"-99\n" if name.endswith("version") else content),
    "byteorder": lambda name, content: (name, b"sideways" if name.endswith("byteorder") else content),
    "jit": lambda name, content: (name.replace("version", "constants.pkl"), content),
}


def _run(change: Callable[[dict, random.Random], Any], folder: Path, draw: random.Random) -> Path:
    """A run folder whose settings or newest checkpoint were changed."""
    run = folder / "run"
    state = {"step": 3, "generator": _state(), "ema": _state(), "critic": {}}
    content = {"config": as_json(CONFIG), "saved": {"preset": "digits", "data": "", "state": state}}
    change(content, draw)
    checkpoint.save(run / "checkpoints", 3, content["saved"])
    (run / "config.json").write_text(json.dumps({"preset": "digits", "config": content["config"]}))
    return run


RUNS = {
    "extractor-code": _as_it_is,
    "extractor-weights-device": _in("config", extractor="inception", extractor_weights="/dev/zero"),
    "width-huge": _in("config", width=1e6),
    "z-dim-huge": _in("config", z_dim=10**9),
    "batch-huge": _in("config", batch_g=10**9),
    "model-number": _in("config", model=3),
    "setting-unknown": _in("config", surprise=3),
    "settings-none": _set(config={}),
    "checkpoint-list": _set(saved=[1]),
    "checkpoint-empty": _set(saved={}),
    "state-list": _set(saved={"state": [1]}),
    "state-of-numbers": lambda content, draw: content["saved"]["state"].update(ema={"a": 3}),
    "step-text": lambda content, draw: content["saved"]["state"].update(step="3"),
    "weights-other": lambda content, draw: content["saved"]["state"].update(ema={"a": torch.zeros(3)}),
}


def _command(*words: str) -> Callable[[Path], list[str]]:
    return lambda path: [word.format(path) for word in words]


_eval = _command("eval", "{}", "--reference", "{}", "--device=cpu")
_eval_generator = _command("eval", "{}", "--n=8", "--device=cpu", "--kid-subsets=0")
_sample = _command("sample", "{}", "--n=2", "--out=drawn.png", "--device=cpu")
_export = _command("export", "{}", "--out=again.safetensors")
_weights = _command("eval", "digits", "--extractor-weights={}", "--save-stats=of-digits.npz", "--device=cpu")
_analyze = _command("analyze", "--net=torch.nn:Identity", "--weights={}", "--data=digits", "--n=4", "--device=cpu")


PLAIN = {
    "list": [1],
    "module": torch.nn.Linear(2, 2),
    "code": RUNS_CODE["system"],
    "sparse-one": {"a": torch.zeros(3).to_sparse()},
    "number": {"a": 3},
    "keys": {3: torch.zeros(1)},
    "wide": {"fc.weight": _many(10**12)},
}
# Kind: what each change is made by, and the command that meets the result.
_CHANGED = [
    ("npz", STATISTICS, _npz, _eval),
    ("npz", RAW_STATISTICS, _raw_npz, _eval),
    ("npz-by", {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}, _compressed_npz, _eval),
    ("export", EXPORTED, _safetensors, _eval_generator),
    ("export", HEADERS, _safetensors_header, _sample),
    ("published", PUBLISHED, _published, _export),
    ("published", ZIPPED, _zipped, _sample),
    ("run", RUNS, _run, _eval_generator),
    ("weights", PLAIN, partial(_plain, "weights.pth"), _weights),
    ("analyze", PLAIN, partial(_plain, "weights.pt"), _analyze),
]
_GOOD = [("npz", _npz, _eval), ("export", _safetensors, _sample), ("published", _published, _export)]
_NAMES = [
    ("npz", "s.npz", _eval),
    ("export", "G.safetensors", _sample),
    ("published", "model.pt", _export),
    ("weights", "weights.pth", _weights),
    ("analyze", "weights.safetensors", _analyze),
]
MADE = [
    Hostile(f"{name}-{kind}", partial(make, change), command)
    for name, changes, make, command in _CHANGED
    for kind, change in changes.items()
]
MADE += [
    Hostile(f"{name}-{how}", partial(_damaged, partial(make, _as_it_is), how), command)
    for name, make, command in _GOOD
    for how in DAMAGES
]
MADE += [Hostile(f"{kind}-{how}", partial(_special, name, how), do) for kind, name, do in _NAMES for how in SPECIALS]
HOSTILE += MADE
