"""A sweep: a TOML file that names a preset, base options and what to vary, and the runs that follow from it.

`docs/sweeps.md` describes the file. This module reads it; `launch.py` trains its runs, `sweep_results.py` sums them up,
`sweep_page.py` shows that.
"""

import dataclasses
import itertools
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnfast.config.chosen import of_its_data
from gnfast.config.config import Config
from gnfast.config.networks import require_networks
from gnfast.config.presets import PRESETS
from gnfast.errors import require_int, unknown
from gnfast.io.files import expanded, open_regular

# The run folder follows from the sweep's.
OPTIONS = [field.name for field in dataclasses.fields(Config) if field.name != "run_dir"]
TOP = {"preset": str, "out": str, "score": str, "base": dict, "grid": dict, "case": dict | list, "run": dict}
RUN = ("processes", "devices", "threads")
MOST_RUNS = 200_000
_FILE_BYTES = 16 << 20
# What the folder of a sweep holds besides its runs.
_OWN = {"output", "sweep.json", "table.md", "table.csv", "runs.csv", "figure.svg", "report.html", ".lock"}


@dataclass(frozen=True)
class Case:
    """One run of a sweep.

    Attributes:
        labels: what it is among the others: the name of its case, or its value, per axis ("seed": 0).
        preset: the preset that it trains.
        options: settings that replace the preset's, as TOML has them.
        folder: its run folder.
    """

    labels: dict[str, Any]
    preset: str
    options: dict[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """The run folder's name, unique within the sweep."""
        return self.folder.name

    @property
    def combination(self) -> tuple[tuple[str, Any], ...]:
        """The labels without the seed: runs that have them in common are repetitions of each other."""
        return tuple((axis, label) for axis, label in self.labels.items() if axis != "seed")

    def config(self) -> Config:
        """The settings of the run.

        Raises:
            ValueError: a value that they cannot have.
        """
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in self.options.items()}
        usual = PRESETS[self.preset].config
        return of_its_data(dataclasses.replace(usual, **options, run_dir=str(self.folder)), usual, options)

    def words(self) -> list[str]:
        """The arguments of `gnfast` that train it."""
        options = {**self.options, "run_dir": str(self.folder)}
        return ["train", self.preset, *itertools.chain.from_iterable(_word(n, v) for n, v in options.items())]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read.

    Attributes:
        out: the folder of the runs and the tables.
        cases: the runs, all combinations with one seed before those with the next.
        score: the key of metrics.jsonl to tabulate (`distance_ema`); the first that the runs have if empty.
        processes: how many runs at once.
        devices: where to, in turn (`cuda:0`); each run's own setting if empty.
        threads: CPU threads per run; 0 leaves each run's own setting.
        seconds: after which its runs are asked to stop, from when all that began at first have a row and train.
    """

    out: Path
    cases: tuple[Case, ...]
    score: str
    processes: int
    devices: tuple[str, ...]
    threads: int
    seconds: float = math.inf


def load_sweep(path: Path, out: Path | None = None, extractor: str = "") -> Sweep:
    """Reads a sweep file.

    Args:
        path: the TOML file.
        out: instead of the file's own `out`; runs/ and the file's name without its ending if both are missing.
        extractor: of all runs, instead of the file's; MODULE:FUNCTION, which is imported, may not come from the file.

    Raises:
        ValueError: not TOML, or a name or value that it cannot have; the message names the file and the place.
        OSError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            text = file.read(_FILE_BYTES + 1)
        if len(text) > _FILE_BYTES:
            raise ValueError(f"longer than {_FILE_BYTES >> 20} MiB")
        return sweep_of(tomllib.loads(text.decode()), out, extractor, path.stem)
    except RecursionError as error:
        raise ValueError(f"{path}: lists or tables are nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def sweep_of(found: dict[str, Any], out: Path | None = None, extractor: str = "", stem: str = "sweep") -> Sweep:
    """The sweep that a file with this content describes.

    Args:
        found: as TOML has it.
        out, extractor: as for `load_sweep`.
        stem: the file's name without its ending.

    Raises:
        ValueError: a name or value that it cannot have.
    """
    _known("the file", found, TOP)
    for name, value in found.items():
        if not isinstance(value, TOP[name]):
            raise ValueError(f"{name}: got {value!r}, wanted a {'string' if TOP[name] is str else 'table'}")
    out = out or expanded(found.get("out", f"runs/{stem}"))
    base = _options("[base]", found.get("base", {}))
    axes = [*_case_axes(found.get("case", {})), *_grid_axes(found.get("grid", {}))]
    cases = tuple(_cases(found.get("preset", ""), base, axes, out, extractor))
    twice, count = Counter(case.name for case in cases).most_common(1)[0]
    if count > 1:
        raise ValueError(f"two runs would be called {twice!r}: give the cases different names")
    run = found.get("run", {})
    _known("[run]", run, RUN)
    devices = run.get("devices", [])
    if not isinstance(devices, list) or not all(isinstance(device, str) for device in devices):
        raise ValueError(f'[run] devices: got {devices!r}, wanted a list such as ["cuda:0", "cuda:1"]')
    if devices and any("device" in case.options for case in cases):
        raise ValueError("[run] devices: some runs have an option `device` already; give one of the two")
    processes = require_int("[run] processes", run.get("processes", max(1, len(devices))), 1)
    threads = require_int("[run] threads", run.get("threads", 0), 0)
    return Sweep(out, cases, found.get("score", ""), processes, tuple(devices), threads)


# An axis: its name, and for each of its labels the options that go with it.
_Axis = tuple[str, list[tuple[Any, dict[str, Any]]]]


def _case_axes(found: dict[str, Any] | list[Any]) -> Iterator[_Axis]:
    """`[[case]]` is one axis of that name; `[[case.NAME]]` is one axis each."""
    axes = found if isinstance(found, dict) else {"case": found}
    for axis, entries in axes.items() if found else ():
        place = f"[[case.{axis}]]" if axes is found else "[[case]]"
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{place}: got {entries!r}, wanted tables")
        labels = []
        for entry in entries:
            name = entry.get("name")
            if not isinstance(name, str) or not name:
                raise ValueError(f"{place}: each needs a name")
            labels.append((name, _options(place, {key: value for key, value in entry.items() if key != "name"})))
        yield axis, labels


def _grid_axes(found: dict[str, Any]) -> Iterator[_Axis]:
    for name, values in _options("[grid]", found).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"[grid] {name}: got {values!r}, wanted a list of values")
        yield name, [(value, {name: value}) for value in values]


def _cases(preset: str, base: dict[str, Any], axes: list[_Axis], out: Path, extractor: str) -> Iterator[Case]:
    count = math.prod(len(labels) for _, labels in axes)
    if count > MOST_RUNS:
        raise ValueError(f"cases and grid make {count:,} runs, wanted at most {MOST_RUNS:,}")
    # Seeds change slowest, so that a sweep that is cut short has seen every combination.
    order = sorted(range(len(axes)), key=lambda index: axes[index][0] != "seed")
    for picked in itertools.product(*(axes[index][1] for index in order)):
        chosen = dict(zip(order, picked, strict=True))
        labels, options = {}, dict(base)
        for index, (axis, _) in enumerate(axes):
            labels[axis], changes = chosen[index]
            options |= changes
        if extractor:
            options["extractor"] = extractor
        elif ":" in (named := str(options.get("extractor", ""))):
            raise ValueError(f"extractor: {named!r} names code to import, which is taken from --extractor alone")
        name = options.pop("preset", preset)
        if not name:
            raise ValueError("preset: which one? e.g. preset = 'digits'")
        if str(name) not in PRESETS:
            raise ValueError(f"preset: {unknown('name', str(name), PRESETS)}")
        case = Case(labels, name, options, out / _folder(labels))
        try:
            config = case.config()
            if not config.data:
                raise ValueError(PRESETS[name].needs)
            require_networks(config)
        except ValueError as error:
            raise ValueError(f"run {case.name}: {error}") from error
        yield case


def _folder(labels: dict[str, Any]) -> str:
    """`A,SN,k_sn=0.5,seed=0`: names of cases as they are, values with their option's name."""
    parts = [
        f"{axis}={shown(label, '+')}" if axis in OPTIONS or axis == "preset" else label
        for axis, label in labels.items()
    ]
    name = re.sub(r"[^\w.,=+-]", "-", ",".join(parts)) or "run"
    if name in _OWN or not name.strip(".") or len(name.encode()) > 200:
        raise ValueError(f"a run cannot be called {name[:50]!r}: give its case another name, of at most 200 bytes")
    return name


def shown(label: Any, between: str = " ") -> str:
    """A label as text."""
    return between.join(map(str, label)) if isinstance(label, list) else str(label)


def _options(place: str, found: dict[str, Any]) -> dict[str, Any]:
    """Options under the names that `Config` has for them."""
    options = {name.replace("-", "_"): value for name, value in found.items()}
    if "run_dir" in options:
        raise ValueError(f"{place} run_dir: follows from the sweep's `out` and the run's name")
    _known(place, options, [*OPTIONS, "preset"])
    return options


def _known(place: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{place}: {unknown('name', name, known)}")


def _word(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list | tuple):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}={value}"]
