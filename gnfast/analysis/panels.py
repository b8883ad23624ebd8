"""Figures on disk: each as PNG with its numbers as CSV, and one page that explains them and names their sources."""

import csv
import inspect
from pathlib import Path

from gnfast.analysis.figures import PANELS
from gnfast.io.files import atomic_write
from gnfast.runs.drawing import drawing, png
from gnfast.runs.page import Html, element, embedded, section, write_page
from gnfast.runs.rows import Panels, Rows


def write_panels(folder: Path, heading: str, lead: str, panels: Panels) -> Path:
    """Writes NAME.png and NAME.csv for each panel, and index.html, which needs no other file.

    Args:
        folder: made if missing.
        heading, lead: title and first paragraph of the page, plain text.
        panels: names of `PANELS` to rows, which all have the same keys.

    Returns:
        The page.
    """
    sections = [_written(folder, name, rows) for name, rows in panels.items()]
    return write_page(folder / "index.html", heading, element("h1", heading), element("p", lead), *sections)


def _written(folder: Path, name: str, rows: Rows) -> Html:
    title, source, draw = PANELS[name]
    with drawing():
        image = png(draw(rows))
    with atomic_write(folder / f"{name}.png") as part:
        part.write_bytes(image)
    with atomic_write(folder / f"{name}.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return section(
        title,
        element("p", inspect.getdoc(draw).format_map(rows[0])),
        element("p", f"{source}; numbers in {name}.csv", class_="soft"),
        embedded(image, "image/png", title, class_="plot"),
        id=name,
    )
