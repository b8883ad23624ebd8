"""Figures on disk: each as a PNG with its numbers as CSV, and one page that explains them."""

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from gnfast.analysis.figures import Rows
from gnfast.io.files import atomic_write, write_text

DPI = 130

STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }
img { max-width: 100%; }
h2 { margin: 2.5rem 0 .3rem; font-size: 1.2rem; }
small { color: #555; }
"""


@dataclass(frozen=True)
class Panel:
    """One figure with what belongs to it.

    Attributes:
        name: of its files, without suffix.
        title: a heading.
        text: two sentences, what is drawn and how to read it.
        source: the paper and its figure.
        figure: drawn from `rows`.
        rows: the numbers; all rows have the same keys.
    """

    name: str
    title: str
    text: str
    source: str
    figure: Figure
    rows: Rows


def write(folder: Path, heading: str, lead: str, panels: Sequence[Panel]) -> Path:
    """Writes NAME.png and NAME.csv for each panel, and index.html, which needs no other file.

    Args:
        folder: made if missing.
        heading, lead: title and first paragraph of the page, plain text.
        panels: at least one.

    Returns:
        The page.
    """
    parts = [f"<h1>{html.escape(heading)}</h1>", f"<p>{html.escape(lead)}</p>"]
    for panel in panels:
        drawn = io.BytesIO()
        panel.figure.savefig(drawn, dpi=DPI, format="png")
        with atomic_write(folder / f"{panel.name}.png") as part:
            part.write_bytes(drawn.getvalue())
        write_text(folder / f"{panel.name}.csv", _csv(panel.rows))
        picture = base64.b64encode(drawn.getvalue()).decode()
        parts += [
            f'<h2 id="{panel.name}">{html.escape(panel.title)}</h2>',
            f"<p>{html.escape(panel.text)}</p>",
            f"<p><small>{html.escape(panel.source)}; numbers in {panel.name}.csv</small></p>",
            f'<img alt="{html.escape(panel.title)}" src="data:image/png;base64,{picture}">',
        ]
    page = folder / "index.html"
    write_text(
        page,
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(heading)}</title>\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n",
    )
    return page


def _csv(rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
