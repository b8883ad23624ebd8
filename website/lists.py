"""Lists as Python-Markdown wants them, which the site is built with, from lists as GitHub shows them.

GitHub takes what is indented as far as an item's text for part of the item, and lets a list begin right after a line of
a paragraph. Python-Markdown wants four spaces a level, and an empty line before.
"""

import itertools
import re
from typing import Any

_ITEM = re.compile(r" *([*+-]|\d+\.) +(?=\S)")
_FENCE = re.compile(r" *(```+|~~~+)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return with_wide_lists(markdown)


def with_wide_lists(markdown: str) -> str:
    """The same text, with four spaces for each level of its lists, and an empty line before each."""
    lines: list[str] = []
    # Where the text begins of each item that the line is in.
    margins: list[int] = []
    fence = ""
    for line in markdown.splitlines():
        item = None
        if line.strip() and not fence:
            item = _ITEM.match(line)
            goes_on = not item and lines and lines[-1].strip()
            # A line of a paragraph may begin left of the item that it is in.
            while margins and _indent(line) < margins[-1] and not (goes_on and _indent(line)):
                margins.pop()
        outer = margins[-1] if margins else 0
        depth = len(margins)
        block = [*itertools.takewhile(bool, reversed(lines))]
        # Neither what is indented like code, nor a number at which a sentence was broken.
        if item and _indent(line) < outer + 4 and (item[1][:-1] in ("", "1") or not _is_paragraph(block, depth)):
            lines += [""] if _hides_item(block, depth) else []
            lines.append((" " * 4 * depth + item[1]).ljust(4 * depth + 4) + line[item.end() :])
            margins.append(item.end())
        else:
            lines.append((" " * 4 * depth + line[min(_indent(line), outer) :]).rstrip())
        if mark := _FENCE.match(line):
            fence = "" if fence and mark[1].startswith(fence) else fence or mark[1]
    return "\n".join(lines) + "\n"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_paragraph(block: list[str], depth: int) -> bool:
    """Whether the lines, backwards, are a paragraph at this depth, and not of an item of a list there."""
    inside = [line for line in block if _indent(line) >= 4 * depth]
    return bool(inside) and _indent(inside[-1]) < 4 * depth + 4 and not any(map(_ITEM.match, inside))


def _hides_item(block: list[str], depth: int) -> bool:
    """Whether an item right after these lines, backwards, would be taken for more of their text."""
    after_item = any(_ITEM.match(line) and _indent(line) == 4 * depth for line in block)
    return bool(block) and not after_item and not (_ITEM.match(block[0]) and _indent(block[0]) < 4 * depth)
