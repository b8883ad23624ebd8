"""Formulas as MathML, which browsers show by themselves: no script, no font and no network.

A formula is written in TeX between dollar signs, as GitHub shows it too.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# Bars around a norm and slashes, which browsers would stretch or set apart like operators between two terms.
_TIGHT = re.compile(r'<mo(?: fence="false")?(?: stretchy="false")?>(&#x02016;|&#x0007C;|&#x0002F;)</mo>')
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """A hook of MkDocs: the page with its formulas as MathML."""
    return _FORMULA.sub(lambda found: mathml(html.unescape(found[3]), display=found[2] == "["), content)


def mathml(tex: str, display: bool = False) -> str:
    """One formula, without its dollar signs.

    Raises:
        ValueError: it has a command that is not known.
    """
    result = convert(tex, display="block" if display else "inline")
    if unknown := re.search(r"\\[A-Za-z]+", result):
        raise ValueError(f"{tex}: {unknown[0]} is not known")
    result = _TIGHT.sub(r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', result)
    # ∂ is a letter here: as an operator it has a gap at its left.
    return result.replace("<mo>&#x02202;</mo>", "<mi>&#x02202;</mi>")
