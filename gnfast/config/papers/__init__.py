"""The tables and figures of the five papers, one TOML file each: what to train for it, and what the paper prints.

`docs/papers.md` describes the files. Numbers are written as printed ("7.42±.08"), so that they can be looked up.
"""

import functools
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gnfast.errors import unknown

FOLDER = Path(__file__).parent
PAPERS = {
    "GN-GAN": "Gradient Normalization for Generative Adversarial Networks (Wu et al., ICCV 2021)",
    "GraN-GAN": "Piecewise Gradient Normalization for Generative Adversarial Networks (Bhaskara et al., WACV 2022)",
    "PGN-GAN": "Penalty Gradient Normalization for Generative Adversarial Networks (Xia, 2023)",
    "SN-GAN": "Spectral Normalization for Generative Adversarial Networks (Miyato et al., ICLR 2018)",
    "Lipschitz": "How Does Lipschitz Regularization Influence GAN Training? (Qin et al., ECCV 2020)",
}
# Papers that report each run at its best checkpoint by FID (GN-GAN, section 5); the others do not say, or the last.
AT_BEST = {"GN-GAN", "PGN-GAN"}
STATES = {
    "full": "every setting is the paper's or its code's",
    "reduced": "something is assumed or left out; the note says what",
    "impossible": "cannot be redone; the note says why",
}
KINDS = {
    "table": "rows and columns of scores",
    "bars": "scores as bars",
    "curves": "scores over training",
    "samples": "generated images",
    "analysis": "the critics of the trained runs, analysed",
    "drawn": "drawn without runs",
}


class Score(NamedTuple):
    """What a number in a table is.

    Attributes:
        title: as tables have it.
        key: its name in metrics.jsonl; empty where training does not measure it.
        words: options of `gnfast eval` that measure it, where training measures something else or nothing; what they
            measure goes before `key`.
        result: its name in the result of these.
        interval: the two names in metrics.jsonl of one that has two ends.
    """

    title: str
    key: str = ""
    words: tuple[str, ...] = ()
    result: str = ""
    interval: tuple[str, str] | None = None


SCORES = {
    "is": Score("IS", "is_ema"),
    # The score takes ten parts of the images.
    "is_10x5k": Score("IS (ten times 5,000)", "is_ema", ("--n", "50000"), "is_mean"),
    "fid": Score("FID", "distance_ema"),
    "fid_train": Score("FID (train)", "distance_ema"),
    "fid_test": Score("FID (test)", "", ("--split", "test"), "distance"),
    "fid_50k": Score("FID (50k)", "distance_ema"),
    "fid_10k": Score("FID (10k)", "", ("--n", "10000"), "distance"),
    "kid": Score("KID × 1000", "kid_ema"),
    "ms_ssim": Score("intra-class MS-SSIM", "", ("--ms-ssim",), "ms_ssim"),
    "omega": Score("Ω", interval=("omega_min", "omega_max")),
    "slopes": Score("∇L(Ω) at real images", interval=("slope_real_min", "slope_real_max")),
    "slopes_fake": Score("∇L(Ω) at generated images", interval=("slope_fake_min", "slope_fake_max")),
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_PRINTED = re.compile(rf"(?P<mean>{_NUMBER})(?:\s*±\s*(?P<std>{_NUMBER}))?|\[(?P<low>{_NUMBER}), (?P<high>{_NUMBER})\]")
_TEXTS = ("paper", "item", "title", "kind", "state")
_TOP = dict.fromkeys((*_TEXTS, "note", "at", "drawing"), str) | dict.fromkeys(("scores", "analyses", "cell"), list)
_TOP |= {"seeds": int, "base": dict}
_CELL = dict.fromkeys(("row", "column", "preset", "why"), str) | dict.fromkeys(("options", "vary"), dict)
# What every run is given anyway, by the place of its folder and its number among a cell's runs.
_GIVEN = {"run_dir", "seed"}


@dataclass(frozen=True)
class Printed:
    """A number as a paper prints it.

    Attributes:
        text: as printed.
        mean, std: the number and its deviation; None where it has none.
        interval: its ends, where it is an interval; `mean` is then None.
    """

    text: str
    mean: float | None = None
    std: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Cell:
    """One place of a table, or one curve, bar or picture of a figure.

    Attributes:
        row, column: where it is.
        preset: what is trained for it; empty where nothing can be.
        options: settings that replace the preset's.
        printed: score -> what the paper prints.
        why: why nothing is trained, or what is assumed.
    """

    row: str
    column: str
    preset: str
    options: dict[str, Any]
    printed: dict[str, Printed]
    why: str


@dataclass(frozen=True)
class Item:
    """A table or figure.

    Attributes:
        name: what `gnfast reproduce` calls it, the file's name.
        paper: a key of `PAPERS`.
        item: as the paper counts it: "Table 2".
        title: what it shows.
        kind: a key of `KINDS`.
        state: a key of `STATES`.
        note: what is reduced, or why it is impossible.
        seeds: how many runs the paper has of each cell; 1 where it does not say.
        scores: of each cell, in the order of `SCORES`: those that it prints, or shows in a figure.
        at_best: whether these are of each run's best checkpoint by FID, not of its last.
        base: settings of every cell's run; those of the cell go before them.
        analyses: of kind "analysis", the names that `gnfast analyze --what` has for them.
        drawing: of kind "drawn", its name.
        cells: row by row.
    """

    name: str
    paper: str
    item: str
    title: str
    kind: str
    state: str
    note: str
    seeds: int
    scores: tuple[str, ...]
    at_best: bool
    base: dict[str, Any]
    analyses: tuple[str, ...]
    drawing: str
    cells: tuple[Cell, ...]


@functools.cache
def items() -> dict[str, Item]:
    """All of them by name, paper by paper, in the papers' order.

    Raises:
        ValueError: a file that does not have the form; the message names the file and the place.
    """
    found = [read_item(path) for path in FOLDER.glob("*.toml")]
    order = list(PAPERS)
    return {one.name: one for one in sorted(found, key=lambda one: (order.index(one.paper), _place(one.item)))}


def read_item(path: Path) -> Item:
    """One file.

    Raises:
        ValueError: as for `items`.
    """
    try:
        return _item(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def printed(text: str | float) -> Printed:
    """A printed number: `7.42±.08`, `25.5`, or `[-0.683, 2.091]`.

    Raises:
        ValueError: it is none of them.
    """
    match = _PRINTED.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f"got {text!r}, wanted a number, number±deviation or [low, high]")
    number = {name: float(value) for name, value in match.groupdict().items() if value is not None}
    interval = (number["low"], number["high"]) if "low" in number else None
    return Printed(str(text).strip(), number.get("mean"), number.get("std"), interval)


def reported(preset: str, settings: Any) -> str:
    """What the papers print for a preset as it is: `IS 7.71±.14, FID (train) 19.31±.76`; empty if nothing.

    Tables come before captions, which round.

    Args:
        preset: its name.
        settings: its `Config`: a cell that repeats one of them is the preset as well.
    """
    found: dict[str, str] = {}
    cells = ((item, cell) for item in items().values() for cell in item.cells if cell.preset == preset)
    for item, cell in cells:
        if not differing(item, cell, settings):
            for score, number in cell.printed.items():
                found.setdefault(SCORES[score].title, number.text)
    return ", ".join(f"{title} {text}" for title, text in found.items())


def differing(item: Item, cell: Cell, settings: Any) -> dict[str, Any]:
    """The settings of a cell's run that are not those of its preset's `Config`."""
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in (item.base | cell.options).items()}
    return {name: value for name, value in given.items() if getattr(settings, name, None) != value}


def _item(name: str, found: dict[str, Any]) -> Item:
    _require_kinds("the file", found, _TOP)
    if missing := [key for key in _TEXTS if key not in found]:
        raise ValueError(f"{missing[0]}: missing")
    if found.get("seeds", 1) < 1:
        raise ValueError(f"seeds: got {found['seeds']}, wanted at least 1")
    for key, known in (("paper", PAPERS), ("state", STATES), ("kind", KINDS)):
        if found.get(key) not in known:
            raise ValueError(f"{key}: {unknown('name', str(found.get(key)), known)}")
    if found["state"] != "full" and not found.get("note"):
        raise ValueError(f"note: state {found['state']!r} needs one")
    note = " ".join(found.get("note", "").split())
    texts = (name, *(found[key] for key in _TEXTS), note)
    analyses, drawing = tuple(found.get("analyses", ())), found.get("drawing", "")
    if (found["kind"] == "analysis") != bool(analyses) or (found["kind"] == "drawn") != bool(drawing):
        raise ValueError("analyses, drawing: wanted with kind 'analysis' and 'drawn', and with no other")
    if wrong := [entry for entry in found.get("cell", []) if not isinstance(entry, dict)]:
        raise ValueError(f"cell: got {wrong[0]!r}, wanted a table")
    cells = tuple(cell for entry in found.get("cell", []) for cell in _cells(entry))
    for place, count in Counter((cell.row, cell.column) for cell in cells).items():
        if count > 1:
            raise ValueError(f"cell {place[0]!r}, {place[1]!r}: there are {count}, wanted one")
    for settings in (found.get("base", {}), *(cell.options for cell in cells)):
        if given := sorted(_GIVEN & settings.keys()):
            raise ValueError(f"{given[0]}: got {settings[given[0]]!r}, wanted none: every run has its own")
    shown = found.get("scores") or [score for score in SCORES if any(score in cell.printed for cell in cells)]
    _known("scores", dict.fromkeys(shown), SCORES)
    at = found.get("at", "best" if found["paper"] in AT_BEST else "last")
    _known("at", {at: None}, ("best", "last"))
    options = (found.get("seeds", 1), tuple(shown), at == "best", found.get("base", {}))
    return Item(*texts, *options, analyses, drawing, cells)


def _cells(entry: dict[str, Any]) -> Iterator[Cell]:
    """The cell of an entry, or its row of cells where it varies an option or the end of the preset's name."""
    row, column = entry.get("row", ""), entry.get("column", "")
    try:
        _require_kinds("cell", entry, _CELL | dict.fromkeys(SCORES, str | int | float | list))
        preset, why, options = entry.get("preset", ""), entry.get("why", ""), entry.get("options", {})
        if not preset and not why:
            raise ValueError("why: a cell without a preset needs one")
        scores = {score: entry[score] for score in SCORES if score in entry}
        if "vary" not in entry:
            yield Cell(row, column, preset, options, _printed(scores), why)
            return
        if len(entry["vary"]) != 1 or not all(isinstance(values, list) for values in entry["vary"].values()):
            raise ValueError(f"vary: got {entry['vary']}, wanted one option and a list")
        ((option, values),) = entry["vary"].items()
        if any(not isinstance(texts, list) or len(texts) != len(values) for texts in scores.values()):
            raise ValueError(f"vary: {len(values)} values, wanted as many of each score")
        for place, value in enumerate(values):
            numbers = _printed({score: texts[place] for score, texts in scores.items()})
            ending, changes = (f"-{str(value).lower()}", {}) if option == "preset" else ("", {option: value})
            yield Cell(row, _plain(value), preset + ending, options | changes, numbers, why)
    except ValueError as error:
        raise ValueError(f"cell {row!r}, {column!r}: {error}") from error


def _printed(scores: dict[str, str | float]) -> dict[str, Printed]:
    return {score: printed(text) for score, text in scores.items() if text != "-"}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _require_kinds(place: str, found: dict[str, Any], kinds: dict[str, Any]) -> None:
    """That a table has names of `kinds` alone, and values of theirs."""
    _known(place, found, kinds)
    for name, value in found.items():
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise ValueError(f"{place}, {name}: got {value!r}, wanted {getattr(kinds[name], '__name__', kinds[name])}")


def _known(place: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{place}: {unknown('name', name, known)}")


def _place(item: str) -> tuple[str, int]:
    """Tables before figures, each by its number."""
    kind, _, number = item.partition(" ")
    return ("" if kind == "Table" else kind, int(re.sub(r"\D", "", number) or 0))
