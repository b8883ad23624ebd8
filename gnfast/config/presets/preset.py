"""What a preset is: settings with a name, where each comes from, and what was reported with them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gnfast.config.config import Config

OURS = "gnfast"
# What SN-GAN's experiments and those after it have in common.
CIFAR10 = Config(
    data="cifar10",
    resolution=32,
    flip=False,
    method="none",
    loss="non-saturating",
    steps=100_000,
    batch_d=64,
    batch_g=64,
    ema_decay=0.0,
)
STL10 = {"data": "stl10", "split": "unlabeled", "resolution": 48}


def adam(rate: float, beta1: float, beta2: float, n_dis: int) -> dict[str, Any]:
    """The settings of an optimiser that papers give in a row: learning rate of both networks, β₁, β₂, n_dis."""
    return {"lr_d": rate, "lr_g": rate, "betas": (beta1, beta2), "n_dis": n_dis}


@dataclass(frozen=True)
class Preset:
    """A named `Config` with its origin.

    Attributes:
        summary: one line for the table.
        config: the settings.
        source: where the published settings come from.
        published: names of the settings that `source` gives; all others are gnfast's choice.
        reported: the scores that the papers' tables give for it.
        open: what the paper leaves open, or where paper and code differ, and what is assumed here.
        needs: what the user has to provide, as a message, if `config.data` is empty.
        elsewhere: setting -> where its value comes from, of those that `source` does not give.
    """

    summary: str
    config: Config
    source: str = OURS
    published: tuple[str, ...] = ()
    reported: str = ""
    open: str = ""
    needs: str = ""
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def source_of(self, name: str) -> str:
        """Where the value of one setting comes from."""
        return self.elsewhere.get(name, self.source if name in self.published else OURS)

    def but(self, summary: str, *, source: str = "", **changes: Any) -> "Preset":
        """The same experiment with other settings, which come from `source`, or from its own; no scores."""
        return dataclasses.replace(
            self,
            summary=summary,
            config=dataclasses.replace(self.config, **changes),
            reported="",
            elsewhere={**self.elsewhere, **dict.fromkeys(changes, source or self.source)},
        )
