"""Self-contained HTML pages: text is escaped unless it is markup, pictures are data URIs, nothing is loaded."""

import base64
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from gnfast.io.files import open_regular, write_text

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --text: #1d2126; --soft: #667078; --line: #e2e4e6;
  --mark: #fff3c9; --accent: #2563a8; --begun: #d9731a; --finished: #2c8a4b; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --card: #1c2024; --text: #e6e8ea; --soft: #98a2aa; --line: #31373d; --mark: #453b12;
    --accent: #7db3ee; --begun: #f0994d; --finished: #5fbf7f; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; font-variant-numeric: tabular-nums }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem }
p { margin: .3rem 0 } .soft { color: var(--soft) } a { color: var(--accent) }
.status { display: inline-block; margin: .6rem 0 0; padding: .1rem .6rem; border: 1px solid; border-radius: 1rem;
  color: var(--begun); font-size: .85rem } .status.finished { color: var(--finished) }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)) }
.grid.wide { grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)) }
.grid.wide .across { grid-column: 1 / -1 }
.card, figure { margin: 0; padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem }
.card b { display: block; font-size: 1.5rem; line-height: 1.3; font-weight: 600 } .card small { color: var(--soft) }
figcaption { font-size: .88rem; margin-bottom: .3rem } figcaption b { font-weight: 600; margin-right: .6rem }
figcaption span { white-space: nowrap; margin-right: .7rem; color: var(--soft) }
figcaption .note { display: block; white-space: normal; overflow-wrap: anywhere }
figcaption i { display: inline-block; width: .9em; height: .22em; margin-right: .35em; vertical-align: .25em }
/* A shadow where there is more to the side: not every browser shows its bars. */
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--ground) 30%, transparent) left / 3rem 100% local,
  linear-gradient(to left, var(--ground) 30%, transparent) right / 3rem 100% local,
  linear-gradient(to right, var(--line), transparent) left / 1rem 100% scroll,
  linear-gradient(to left, var(--line), transparent) right / 1rem 100% scroll; background-repeat: no-repeat }
table { border-collapse: collapse; font-size: .88rem; min-width: 30rem }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 500 } td { max-width: 34rem; overflow-wrap: break-word }
td.short { white-space: nowrap }
tr.changed td { background: var(--mark) } tr.changed td:first-child { font-weight: 600 }
pre { margin: 0; padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem }
summary { cursor: pointer; color: var(--soft); margin: .8rem 0 .4rem } input[type=range] { width: 100% }
.shots { display: flex; gap: 1rem } .shots div { flex: 0 1 50%; min-width: 0 }
img { max-width: 100%; height: auto; display: block } img.plot { width: 100%; border-radius: .5rem }
"""

# Turns the figures of each `steps` box, which are all shown without it, into one figure and a slider.
SCRIPT = """
for (const box of document.querySelectorAll(".steps")) {
  const shots = [...box.querySelectorAll("figure")];
  if (shots.length < 2) continue;
  const knob = Object.assign(document.createElement("input"), {type: "range", min: 0, max: shots.length - 1});
  const show = () => shots.forEach((shot, index) => { shot.hidden = index != knob.value; });
  knob.value = shots.length - 1;
  knob.setAttribute("aria-label", "step");
  knob.addEventListener("input", show);
  box.prepend(knob);
  show();
}
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

# Sides in pixels and JPEG qualities that a picture is tried with until it fits its budget.
SIDES = ((720, 90), (720, 75), (540, 65), (400, 50))
# 64 images of 1000 pixels: what is larger is not worth its memory on a page.
PIXELS = 64_000_000

_VOID = {"meta", "img", "br"}


class Html(str):
    """Text that is markup already and is not escaped again."""


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """An element; children that are not `Html` are escaped, `class_` is `class`, `http_equiv` is `http-equiv`."""
    marks = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for key, v in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{marks}>")
    inner = "".join(child if isinstance(child, Html) else escape(str(child)) for child in children)
    return Html(f"<{name}{marks}>{inner}</{name}>")


def write_page(path: Path, title: str, *sections: Html) -> Path:
    """Writes a whole document, and returns its path."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # The browser itself then refuses to load anything from outside.
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", title),
        element("style", Html(STYLE)),
    )
    body = element("body", *sections, element("script", Html(SCRIPT)))
    write_text(path, "<!doctype html>\n" + element("html", head, body, lang="en") + "\n")
    return path


def section(title: str, *content: object, **attributes: object) -> Html:
    """A part of a page under a heading; empty if all of its content is."""
    kept = [part for part in content if part]
    return element("section", element("h2", title, **attributes), *kept) if kept else Html("")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], marked: Iterable[int] = ()) -> Html:
    """A table that scrolls sideways where it must; the rows with the numbers `marked` are highlighted."""
    chosen = set(marked)
    lines = [
        element("tr", *(_cell(cell) for cell in row), class_="changed" if i in chosen else "")
        for i, row in enumerate(rows)
    ]
    header = element("tr", *(element("th", cell) for cell in head))
    return element("div", element("table", header, *lines), class_="scroll")


def _cell(content: object) -> Html:
    # A unit stays with its number.
    return element("td", content, **({"class_": "short"} if len(str(content)) <= 20 else {}))


def card(title: str, value: str, note: str = "") -> Html:
    """A key figure."""
    return element("div", element("small", title), element("b", value), element("small", note), class_="card")


def picture(path: Path, budget: int, alt: str) -> Html | None:
    """An image file as an element of at most `budget` bytes of data where that is possible.

    Returns:
        None if it is damaged, larger than any grid of samples, or no PNG or JPEG.
    """
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            # Said below, with less to be found too large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(file, formats=("PNG", "JPEG"))
            if math.prod(opened.size) > PIXELS:
                return None
            kind, image = opened.format, opened.convert("L" if opened.mode == "L" else "RGB")
    except Exception:  # Pillow raises whatever the damaged bytes lead it to.
        return None
    if kind == "PNG" and max(image.size) <= SIDES[0][0] and path.stat().st_size <= budget:
        return embedded(path.read_bytes(), "image/png", alt)
    for side, quality in SIDES:
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= budget:
            break
    return embedded(buffer.getvalue(), "image/jpeg", alt)


def embedded(data: bytes, kind: str, alt: str, **attributes: object) -> Html:
    """An image element that holds its data."""
    return element("img", src=f"data:{kind};base64,{base64.b64encode(data).decode()}", alt=alt, **attributes)
