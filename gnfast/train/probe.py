"""What the training program measures while it trains: gradient norms, singular values, the loss's domain."""

import torch
from torch import Tensor

from gnfast.config.config import Config
from gnfast.data import to_float
from gnfast.measure import gradient_norms, layer_sigmas, loss_domain, quantiles
from gnfast.train.networks import sample
from gnfast.train.state import State

IMAGES = 64


class Probe:
    """Measures a run from outside: what it returns depends on the networks alone, and nothing of the run changes.

    It neither draws from the run's random states nor moves batch-norm statistics or power iterations, so that a run
    with it gives the same numbers as one without, and a continued run the same rows as an uninterrupted one. One
    measurement costs less than a step of a run with as many images: at every 100th step below 2 % of the time.

    Args:
        config: the run's settings; `method`, `tau`, `eps`, `seed` and `sample_bn` matter.
        images: how many real and how many generated images to measure at.
    """

    def __init__(self, config: Config, images: int = IMAGES):
        if images < 2:
            raise ValueError(f"images: got {images}, wanted at least 2")
        self.config = config
        self.images = images
        self._method = None if config.method == "none" else config.method

    def measure(self, state: State) -> dict[str, float]:
        """One row of numbers, all floats, for metrics.jsonl and TensorBoard.

        Returns:
            `grad_norm_real_*` and `grad_norm_fake_*`: least, quartiles and largest ‖∇f̂‖ (‖∇f‖ without a normaliser);
            `omega_min`, `omega_max`: Ω, the range of the values that the loss gets; `slope_PART_min`, `slope_PART_max`:
            of each part of the loss over Ω; `sigma/LAYER`: the largest singular value of each layer's raw weight as a
            matrix; `sigma_applied/LAYER`: the same of the weight that the layer applies, where a parametrisation acts.
        """
        options = {"method": self._method, "tau": self.config.tau, "eps": self.config.eps}
        images = {"real": self._real(state), "fake": self._fake(state)}
        measured = {name: gradient_norms(state.critic, x, y, **options) for name, (x, y) in images.items()}
        found = {
            f"grad_norm_{name}_{quantile}": value
            for name, norms in measured.items()
            for quantile, value in quantiles(norms.normalized_norm).items()
        }
        logits = measured["real"].normalized, measured["fake"].normalized
        # A run whose logits are no longer finite is stopped by its losses, with a better message.
        if all(bool(torch.isfinite(part).all()) for part in logits):
            found |= loss_domain(state.loss, *logits).row()
        for layer, (raw, applied) in layer_sigmas(state.critic).items():
            found[f"sigma/{layer}"] = raw
            if applied is not None:
                found[f"sigma_applied/{layer}"] = applied
        return found

    def _real(self, state: State) -> tuple[Tensor, Tensor | None]:
        """The same real images at every step, and their labels where the critic takes any."""
        dataset = state.batches.dataset
        chosen = torch.randperm(len(dataset.images), generator=self._random())[: self.images]
        images = to_float(dataset.images[chosen], state.device).to(state.dtype)
        labels = dataset.labels[chosen].to(state.device) if self.config.classes else None
        return images.contiguous(memory_format=state.format), labels

    def _fake(self, state: State) -> tuple[Tensor, Tensor | None]:
        """Images of the generator from the same latents at every step, and their labels."""
        z, y = state.latents(self.images, self._random())
        images = sample(state.generators()["raw"], z, y, batch_statistics=self.config.sample_bn == "batch")
        return images.contiguous(memory_format=state.format), y

    def _random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed + 4)
