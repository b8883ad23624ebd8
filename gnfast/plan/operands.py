"""The operands of a recording: a slot for each tensor, guarded against changes after its use."""

import torch
from torch import Tensor, nn

PLAIN_TENSORS = frozenset([Tensor, nn.Parameter])
"""The types of tensors of which nothing but PyTorch itself decides what its functions do with them."""


class Operands:
    """The tensors that a forward combines with what depends on x, in the order of their first use.

    Args:
        careful: notice changes by `.data` or numpy too, which PyTorch does not count: takes a copy of each.
    """

    def __init__(self, careful: bool) -> None:
        self.tensors: list[Tensor] = []
        self.dtypes: list[torch.dtype] = []
        """In which each is wanted; whoever runs the passes converts them, all at once."""
        self._slots: dict[tuple[int, torch.dtype], int] = {}
        self._versions: list[int] = []
        self._contents: list[Tensor] | None = [] if careful else None

    def slot(self, operand: Tensor, dtype: torch.dtype) -> int:
        """The operand's place, wanted in that dtype, which is the next one when it is new."""
        # Tensors are held, so that an id is not given out twice.
        slot = self._slots.setdefault((id(operand), dtype), len(self.tensors))
        if slot == len(self.tensors):
            self.tensors.append(operand)
            self.dtypes.append(dtype)
            self._versions.append(version_of(operand))
            if self._contents is not None:
                self._contents.append(operand.detach().clone())
        return slot

    def known(self, operand: Tensor) -> int | None:
        """Its slot in its own dtype, if it has one."""
        return self._slots.get((id(operand), operand.dtype))

    def forget(self, first: int) -> None:
        """Takes back the slots from this one on."""
        self._slots = {key: slot for key, slot in self._slots.items() if slot < first}
        for held in (self.tensors, self.dtypes, self._versions, self._contents or []):
            del held[first:]

    def changed(self) -> Tensor | None:
        """One that the forward has changed in place after its use: the passes would read new values."""
        contents = self._contents or [None] * len(self.tensors)
        for operand, version, content in zip(self.tensors, self._versions, contents, strict=True):
            if version_of(operand) != version or not (content is None or _same(operand, content)):
                return operand
        return None

    def close(self) -> None:
        """Frees what was compared."""
        self._contents = None


def is_floating(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype.is_floating_point


def converted(dtype: torch.dtype, to: torch.dtype | None) -> torch.dtype:
    """What an operand's dtype becomes where those of floating point become `to`; autocast leaves float64 alone."""
    return dtype if to is None or not dtype.is_floating_point or dtype == torch.float64 else to


def version_of(tensor: Tensor) -> int:
    """Counts writes in place."""
    # Nobody is to see this question.
    if type(tensor) not in PLAIN_TENSORS or torch._C._len_torch_function_stack():
        with torch._C.DisableTorchFunction():
            return _version(tensor)
    return _version(tensor)


def _version(tensor: Tensor) -> int:
    # Inference tensors have none, and cannot be saved for a backward either.
    return 0 if tensor.is_inference() else tensor._version


def _same(tensor: Tensor, content: Tensor) -> bool:
    """Whether all entries are equal, NaN to NaN too."""
    if torch.equal(tensor, content):
        return True
    return tensor.isnan().equal(content.isnan()) and torch.equal(tensor.nan_to_num(), content.nan_to_num())
