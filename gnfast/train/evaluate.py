"""Fréchet distances while training, in the features of an extractor that every result names."""

from collections.abc import Callable
from typing import Any

import torch

from gnfast import metrics
from gnfast.data import ImageDataset, to_uint8
from gnfast.train.config import Config
from gnfast.train.logs import RunLog
from gnfast.train.state import State


def evaluation(
    config: Config, dataset: ImageDataset, extractor: metrics.FeatureExtractor | None, log: RunLog, progress: bool
) -> Callable[[State], None]:
    """A function that measures the raw and the EMA generator and logs the result; it does nothing without an extractor.

    Args:
        config: the settings; `n_fake`, `batch_g`, `sample_bn` and `seed` matter here.
        dataset: the real images.
        extractor: what measures features, or None.
        log: gets a row of metrics.jsonl and a line per evaluation.
        progress: show bars on a terminal.
    """
    if extractor is None:
        return lambda state: None

    def evaluate(state: State) -> None:
        row: dict[str, Any] = {}
        for name, generator in state.generators().items():
            # The same latents at every evaluation and for both, so that differences are the generators'.
            noise = torch.Generator().manual_seed(config.seed + 3)
            result = metrics.evaluate(
                lambda count: to_uint8(state.sample_batch(generator, noise)[:count]),  # noqa: B023
                dataset,
                extractor,
                n_fake=config.n_fake,
                batch_size=config.batch_g,
                progress=progress and config.n_fake >= 10_000,
            )
            row[f"distance_{name}"] = result.value
        log.row(state.step, **row, extractor=result.extractor, n_real=result.n_real, n_fake=result.n_fake)
        log.say(
            f"step {state.step}: Fréchet distance {row['distance_ema']:.4g} (EMA), {row['distance_raw']:.4g} (raw), "
            f"in features of {result.extractor}, {result.n_real} real and {result.n_fake} generated images"
        )

    return evaluate
