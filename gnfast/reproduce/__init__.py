"""The papers' tables and figures, trained and measured: from the files of `gnfast.config.papers` to a page for each.

Data flow one way: an item and a scale give runs (`runs.py`), a sweep trains what is missing, scores are read back
(`scores.py`), and a page lays them beside what the paper prints (`page.py`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gnfast.config.papers import Item
from gnfast.io.files import write_text
from gnfast.reproduce.page import write_item
from gnfast.reproduce.runs import NO_DATA, Wanted, as_trained, sweep_of, wanted, with_data
from gnfast.reproduce.scale import Scale
from gnfast.reproduce.scores import Measured, as_json, measure_further, measured
from gnfast.runs.launch import run_sweep
from gnfast.runs.sweep_results import collect

# What analyses measure at, of each kind: as many as GN-GAN's Fig. 3 at full size.
IMAGES, FEW_IMAGES = 50_000, 1024


@dataclass(frozen=True)
class Plan:
    """What is to be done for some items.

    Attributes:
        scale: how large the runs are.
        seeds: runs of each cell; the paper's number, or 1 below full size, if 0.
        out: the folder of everything.
        only: parts of the names of rows and columns to train; empty for all.
        processes: runs at once.
        devices: where to, in turn; each run's own setting if empty.
    """

    scale: Scale
    seeds: int
    out: Path
    only: tuple[str, ...] = ()
    processes: int = 1
    devices: tuple[str, ...] = ()

    def cells(self, item: Item) -> list[Wanted]:
        """The cells of an item with their runs, whether their images are at hand or not."""
        return wanted(item, self.scale, self.seeds, self.out, self.only)

    def page(self, item: Item) -> Path:
        """Where an item's page goes."""
        return self.out / self.scale.name / item.name / "index.html"


def reproduce(
    items: Sequence[Item],
    plan: Plan,
    *,
    train: bool = True,
    retry: bool = False,
    progress: bool = False,
    echo: Callable[[str], None] = print,
) -> tuple[list[Path], int]:
    """Trains the runs that some items ask for and that are missing, and writes a page for each item.

    Args:
        items: the tables and figures.
        plan: how.
        train: whether anything is trained; without, pages show what there is.
        retry: train runs that diverged again, too.
        progress: show bars on stderr.
        echo: called with each line for the user.

    Returns:
        The pages, and the exit status: 0, 1 where a run failed or diverged, or 128 + the signal that stopped the runs.

    Raises:
        ValueError: there are no images where those lie that stand in for all others.
        RunError: another process is at work on the same runs.
    """
    found = {item.name: plan.cells(item) for item in items}
    if train:
        ready = iter(with_data([one for cells in found.values() for one in cells], progress))
        found = {name: [next(ready) for _ in cells] for name, cells in found.items()}
        reasons = (one.left_out for cells in found.values() for one in cells)
        lost = Counter(reason for reason in reasons if reason.startswith(NO_DATA))
        for reason, count in lost.items():
            if plan.scale.stand_in:
                raise ValueError(f"--data: {reason}")
            echo(f"cells that are not run: {count}, {reason}")
    else:
        found = {name: list(map(as_trained, cells)) for name, cells in found.items()}
    sweep = sweep_of(
        [one for cells in found.values() for one in cells], plan.out, plan.scale, plan.processes, plan.devices
    )
    signal = 0
    if train and sweep.cases:
        signal = run_sweep(sweep, retry=retry, progress=progress, echo=echo)
    runs = {run.case.name: run for run in collect(sweep).runs} if sweep.cases else {}
    pages = []
    for item in items:
        if train and not signal:
            measure_further(item, found[item.name], runs, plan.scale, echo)
        cells = measured(item, found[item.name], runs)
        page = plan.page(item)
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page.with_name("scores.json"), as_json(cells, item))
        pages.append(write_item(page, item, cells, plan.scale, _pictures(item, cells, page.parent, plan.scale, echo)))
    failed = train and any(run.state.status in ("failed", "diverged") for run in runs.values())
    return pages, 128 + signal if signal else int(failed)


def _pictures(
    item: Item, cells: Sequence[Measured], folder: Path, scale: Scale, echo: Callable[[str], None]
) -> list[Path]:
    """What an item shows besides scores: drawings, and analyses of the runs that finished."""
    if item.kind == "drawn":
        from gnfast.analysis.drawings import DRAWINGS

        return [DRAWINGS[item.drawing](folder)]
    trained = {
        ", ".join(filter(None, [one.cell.row, one.cell.column])): folders
        for one in cells
        if (folders := [run.case.folder for run in one.runs if run.state.status == "finished"])
    }
    pictures = []
    for name in item.analyses if trained else ():
        from gnfast.analysis.compare import compare
        from gnfast.analysis.critic_analyses import NotApplicableError

        try:
            pictures += compare(trained, [name], folder, n=IMAGES if scale.is_full else FEW_IMAGES, echo=echo)
        except NotApplicableError as error:
            echo(f"{item.name}: no {name}: {error}")
    return pictures
