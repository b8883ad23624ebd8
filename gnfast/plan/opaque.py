"""An operation that was refused: what is raised, and what stands for it in an explained Plan."""

from dataclasses import dataclass

from gnfast.errors import UnsupportedError
from gnfast.plan.op import Op
from gnfast.plan.plan import Refusal


class Refused(UnsupportedError):
    """Raised inside the network's forward to leave it; carries the Refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def of_custom(name: str, place: tuple[str, str]) -> Refusal:
    """Why what a custom autograd Function has returned is refused: its backward need not be that of its forward.

    Args:
        name: as of `names.custom_name`.
        place: the submodule that applies it, and the line.
    """
    submodule, line = place
    reason = f"the custom autograd function {name}, whose backward cannot be seen"
    return Refusal(submodule, f"{name.partition(' ')[0]}.apply", reason, line)


@dataclass(frozen=True)
class Opaque(Op):
    """One operation that was refused, by its name."""

    operation: str

    def label(self) -> str:
        return f"✗ {self.operation}"
