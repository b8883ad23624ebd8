"""A sweep: a TOML file that names a preset, base options and what to vary, and the runs that follow from it.

`docs/sweeps.md` describes the file. This module reads it; `launch.py` trains its runs, `sweep_results.py` sums them up.
"""

import dataclasses
import itertools
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gnfast.config.config import Config, require_kinds
from gnfast.config.presets import PRESETS
from gnfast.io.files import expanded, open_regular

# The run folder follows from the sweep's.
OPTIONS = {field.name for field in dataclasses.fields(Config)} - {"run_dir"}
TOP = ("preset", "out", "score", "base", "grid", "case", "run")
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
        require_kinds(options)
        return dataclasses.replace(PRESETS[self.preset].config, **options, run_dir=str(self.folder))

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
    """

    out: Path
    cases: tuple[Case, ...]
    score: str
    processes: int
    devices: tuple[str, ...]
    threads: int


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
    for name, kind in (("preset", str), ("out", str), ("score", str), ("base", dict), ("grid", dict), ("run", dict)):
        if name in found and not isinstance(found[name], kind):
            raise ValueError(f"{name}: got {found[name]!r}, wanted a {'table' if kind is dict else 'string'}")
    out = out or expanded(found.get("out", f"runs/{stem}"))
    base = _options("[base]", found.get("base", {}))
    axes = [*_case_axes(found.get("case", [])), *_grid_axes(found.get("grid", {}))]
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
    processes = _count("processes", run.get("processes", max(1, len(devices))), 1)
    return Sweep(
        out, cases, found.get("score", ""), processes, tuple(devices), _count("threads", run.get("threads", 0), 0)
    )


# An axis: its name, and for each of its labels the options that go with it.
_Axis = tuple[str, list[tuple[Any, dict[str, Any]]]]


def _case_axes(found: Any) -> Iterator[_Axis]:
    """`[[case]]` is one axis of that name; `[[case.NAME]]` is one axis each."""
    for axis, entries in ({"case": found} if isinstance(found, list) else found).items() if found else ():
        place = f"[[case.{axis}]]" if isinstance(found, dict) else "[[case]]"
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{place}: got {entries!r}, wanted tables")
        for entry in entries:
            if not isinstance(entry.get("name"), str) or not entry["name"]:
                raise ValueError(f"{place}: each needs a name")
        options = [({name: v for name, v in entry.items() if name != "name"}) for entry in entries]
        yield axis, [(entry["name"], _options(place, o)) for entry, o in zip(entries, options, strict=True)]


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
        labels = {axes[index][0]: chosen[index][0] for index in range(len(axes))}
        options = base | {name: v for index in range(len(axes)) for name, v in chosen[index][1].items()}
        if extractor:
            options["extractor"] = extractor
        elif ":" in (named := str(options.get("extractor", ""))):
            raise ValueError(f"extractor: {named!r} names code to import, which is taken from --extractor alone")
        name = options.pop("preset", preset)
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(
                f"preset: {_unknown(name, PRESETS)}" if name else "preset: which one? e.g. preset = 'digits'"
            )
        case = Case(labels, name, options, out / _folder(labels))
        try:
            if not case.config().data:
                raise ValueError(PRESETS[name].needs)
        except ValueError as error:
            raise ValueError(f"run {case.name}: {error}") from error
        yield case


def _folder(labels: dict[str, Any]) -> str:
    """`A,SN,k_sn=0.5,seed=0`: names of cases as they are, values with their option's name."""
    parts = [
        label if axis not in OPTIONS and axis != "preset" else f"{axis}={'+'.join(map(str, _listed(label)))}"
        for axis, label in labels.items()
    ]
    name = re.sub(r"[^\w.,=+-]", "-", ",".join(parts)) or "run"
    if name in _OWN or not name.strip(".") or len(name.encode()) > 200:
        raise ValueError(f"a run cannot be called {name[:50]!r}: give its case another name, of at most 200 bytes")
    return name


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


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
            raise ValueError(f"{place}: {_unknown(name, known)}")


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f"unknown name {name!r}" + (
        f"; did you mean {near[0]!r}?" if near else f"; wanted one of {', '.join(sorted(known))}"
    )


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"[run] {name}: got {value!r}, wanted a whole number of at least {least}")
    return value


def _word(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}={value}"]
