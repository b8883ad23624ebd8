"""The Inception score: how sure a classifier is of each image, and how many classes it sees in all of them."""

import torch
from torch import Tensor


class InceptionScore:
    """exp of the mean KL divergence of p(y|x) from p(y), over `splits` parts of a stream of known length.

    Mean and standard deviation (divisor: the number of splits) over the parts, as in the original code. One pass, in
    float64, with sums of p and of p·log p per part: Σₓ KL(p(·|x) ‖ q) = Σₓ Σ p log p - n Σ q log q.

    Source: Salimans et al., "Improved techniques for training GANs" (2016), section 4.

    Args:
        classes: K, the number of logits.
        total: N, how many images the stream has, at least `splits`; part i begins at ⌊i·N/splits⌋.
        splits: how many parts.
        device: where the sums are kept.
    """

    def __init__(self, classes: int, total: int, splits: int = 10, device: torch.device | str = "cpu") -> None:
        if splits < 1 or total < splits:
            raise ValueError(f"total, splits: got {total} and {splits}, wanted at least 1 split and an image for each")
        self.total, self.splits = total, splits
        self._seen = torch.zeros(splits, dtype=torch.float64, device=device)
        self._entropy = torch.zeros(splits, dtype=torch.float64, device=device)
        self._sums = torch.zeros(splits, classes, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, start: int) -> None:
        """Add images.

        Args:
            logits: (B, K), any floating dtype and device.
            start: how many images of the stream come before these.

        Raises:
            ValueError: another shape, or a part of the stream that it does not have.
        """
        if logits.dim() != 2 or logits.shape[1] != self._sums.shape[1]:
            raise ValueError(f"logits: got {tuple(logits.shape)}, wanted (B, {self._sums.shape[1]})")
        if start < 0 or start + len(logits) > self.total:
            raise ValueError(f"images {start} to {start + len(logits)} lie outside a stream of {self.total}")
        log_p = logits.to(self._sums.device, torch.float64).log_softmax(1)
        p = log_p.exp()
        position = torch.arange(start, start + len(logits), device=p.device)
        # The part of image j is the greatest i with floor(i N / splits) <= j.
        part = ((position + 1) * self.splits - 1) // self.total
        self._seen.index_add_(0, part, torch.ones_like(p[:, 0]))
        self._entropy.index_add_(0, part, torch.xlogy(p, p).sum(1))
        self._sums.index_add_(0, part, p)

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation; ValueError where images of the stream are missing."""
        if int(self._seen.sum()) != self.total:
            raise ValueError(f"score: got {int(self._seen.sum())} images, wanted {self.total}")
        q = self._sums / self._seen[:, None]
        scores = (self._entropy / self._seen - torch.xlogy(q, q).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))
