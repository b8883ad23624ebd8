"""What stands in an explained Plan for an operation that was refused."""

from dataclasses import dataclass

from gnfast.plan.op import Op


@dataclass(frozen=True)
class Opaque(Op):
    """One operation that was refused, by its name."""

    operation: str

    def label(self) -> str:
        return f"✗ {self.operation}"
