"""Formulas as MathML, which browsers show by themselves: no script, no font and no network.

A formula is written between dollar signs in the part of TeX below, as GitHub shows it too. What is not in the tables is
an error of the build.
"""

import html
import re
from collections.abc import Callable
from typing import Any

LETTERS = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "varepsilon": "ε", "zeta": "ζ", "theta": "θ"}
LETTERS |= {"mu": "μ", "sigma": "σ", "tau": "τ", "varphi": "φ", "Omega": "Ω"}
LETTERS |= {"partial": "∂", "nabla": "∇", "infty": "∞", "top": "⊤"}
OPERATORS = {"cdot": "⋅", "times": "×", "otimes": "⊗", "pm": "±", "sum": "∑", "mapsto": "↦", "leftarrow": "←"}
OPERATORS |= {"le": "≤", "ge": "≥", "approx": "≈"}
FENCES = {"lvert": "|", "rvert": "|", "lVert": "‖", "rVert": "‖", "langle": "⟨", "rangle": "⟩"}
SPACES = {",": 0.17, ";": 0.28, "qquad": 2.0}
ACCENTS = {"hat": "^", "bar": "¯", "dot": "˙"}
SIGNS = {"-": "−", "'": "′"}
NAMES = {"min", "max"}
"""Functions that are written upright."""

_TOKEN = re.compile(r"\\([A-Za-z]+|.)|(\d+(?:\.\d+)?)|(\S)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    return _FORMULA.sub(lambda found: mathml(html.unescape(found[3]), display=found[2] == "["), content)


def mathml(tex: str, display: bool = False) -> str:
    """One formula.

    Args:
        tex: without its dollar signs.
        display: whether it has a line of its own.

    Raises:
        ValueError: it has something that is not in the tables here.
    """
    reader = _Reader(tex)
    row = reader.row("")
    return f'<math display="{"block" if display else "inline"}">{row}</math>'


class _Reader:
    def __init__(self, tex: str) -> None:
        self.tex = tex
        # (command, number or character); backwards, so that the next is the last.
        self.tokens = [found.groups() for found in _TOKEN.finditer(tex)][::-1]

    def row(self, end: str) -> str:
        """What stands before the character or command that ends it, which is taken too; all of it where that is ""."""
        parts = []
        while self.tokens and end not in (self.tokens[-1][0], self.tokens[-1][2]):
            parts.append(self.scripted())
        if end and not self.tokens:
            raise ValueError(f"{self.tex}: no {end}")
        self.tokens[-1:] = []
        return f"<mrow>{''.join(parts)}</mrow>"

    def scripted(self) -> str:
        """An atom, with what is below and above it."""
        atom = self.atom()
        below = above = ""
        while self.tokens and self.tokens[-1][2] in ("_", "^"):
            if self.tokens.pop()[2] == "_":
                below = self.argument()
            else:
                above = self.argument()
        tag = {(True, True): "msubsup", (True, False): "msub", (False, True): "msup"}.get((bool(below), bool(above)))
        return f"<{tag}>{atom}{below}{above}</{tag}>" if tag else atom

    def argument(self) -> str:
        """An atom; of a number its first digit, as in TeX."""
        if self.tokens and (number := self.tokens[-1][1]) and len(number) > 1:
            self.tokens[-1:] = [(None, number[1:], None), (None, number[0], None)]
        return self.atom()

    def atom(self) -> str:
        if not self.tokens:
            raise ValueError(f"{self.tex}: ends too early")
        command, number, character = self.tokens.pop()
        if command:
            return self.command(command)
        if number:
            return f"<mn>{number}</mn>"
        if character == "{":
            return self.row("}")
        if character.isalpha():
            return f"<mi>{character}</mi>"
        if character in "|()[]":
            return f'<mo stretchy="false" lspace="0" rspace="0">{character}</mo>'
        if character == "/":
            return '<mo lspace="0" rspace="0">/</mo>'
        return f"<mo>{SIGNS.get(character, html.escape(character))}</mo>"

    def command(self, name: str) -> str:
        if name in COMMANDS:
            return COMMANDS[name](self)
        if name in LETTERS:
            letter = LETTERS[name]
            # Capitals and signs stand upright in TeX.
            return f"<mi>{letter}</mi>" if letter.islower() else f'<mi mathvariant="normal">{letter}</mi>'
        if name in OPERATORS:
            return f"<mo>{OPERATORS[name]}</mo>"
        if name in FENCES:
            form = "prefix" if name.startswith("l") else "postfix"
            return f'<mo form="{form}" stretchy="false">{FENCES[name]}</mo>'
        if name in SPACES:
            return f'<mspace width="{SPACES[name]}em"></mspace>'
        if name in ACCENTS:
            return f'<mover accent="true">{self.argument()}<mo stretchy="false">{ACCENTS[name]}</mo></mover>'
        if name in NAMES:
            return f"<mi>{name}</mi>"
        raise ValueError(f"{self.tex}: \\{name} is not in website/formulas.py")

    def upright(self) -> str:
        if self.tokens.pop()[2] != "{":
            raise ValueError(f"{self.tex}: wanted a word in braces")
        word = ""
        while (token := self.tokens.pop())[2] != "}":
            word += "".join(filter(None, token))
        return f'<mi mathvariant="normal">{word}</mi>'

    def fence(self) -> str:
        command, _, character = self.tokens.pop()
        return f'<mo stretchy="true">{FENCES[command] if command else character}</mo>'


COMMANDS: dict[str, Callable[[_Reader], str]] = {
    "frac": lambda reader: f"<mfrac>{reader.argument()}{reader.argument()}</mfrac>",
    "tfrac": lambda reader: f'<mstyle displaystyle="false">{COMMANDS["frac"](reader)}</mstyle>',
    "sqrt": lambda reader: f"<msqrt>{reader.argument()}</msqrt>",
    "textstyle": lambda reader: f'<mstyle displaystyle="false">{reader.scripted()}</mstyle>',
    "left": lambda reader: f"<mrow>{reader.fence()}{reader.row('right')}{reader.fence()}</mrow>",
    "bigl": _Reader.fence,
    "bigr": _Reader.fence,
    **dict.fromkeys(("mathrm", "text", "operatorname"), _Reader.upright),
}
