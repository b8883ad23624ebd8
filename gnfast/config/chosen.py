"""The settings of a run that is started from Python: a preset or a `Config`, and what differs from it."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

from gnfast.config.config import Config, option
from gnfast.config.presets import PRESETS
from gnfast.config.together import without_effect
from gnfast.errors import InputError, unknown

OWN = "custom"
"""The name of a run whose settings are nobody's."""

_NAMES = [field.name for field in dataclasses.fields(Config)]
# They name further parts of the data set.
_SPLITS = ("eval_split", "validation_split")


def chosen(
    preset: str | Config, config: Config | None, changes: Mapping[str, Any], has_images: bool
) -> tuple[str, Config]:
    """The name and the settings of a run.

    Args:
        preset, config, changes: as `gnfast.train.train` has them.
        has_images: whether the images come from an object; then `data` is "".

    Raises:
        InputError: no such preset or setting, or one that cannot be with images from an object.
        ValueError: a setting has a wrong value, or they do not fit together.
    """
    name, usual = (OWN, preset) if isinstance(preset, Config) else (preset, config)
    if usual is None:
        if name not in PRESETS:
            raise InputError(f"{unknown('preset', str(name), PRESETS)}")
        usual = PRESETS[name].config
    for word in changes:
        if word not in _NAMES:
            raise InputError(f"{unknown('setting', word, _NAMES)}")
    made = dataclasses.replace(usual, **{word: _plain(value) for word, value in changes.items()})
    for word, other in without_effect(made, usual):
        warnings.warn(f"{option(word)} has no effect without {other}", stacklevel=3)
    if not has_images:
        return name, made
    for word in ("data", *_SPLITS):
        if word in changes or (word in _SPLITS and getattr(made, word)):
            raise InputError(f"{word}: got {getattr(made, word)!r}, wanted none with dataset=…")
    return name, dataclasses.replace(made, data="", data_root="")


def _plain(value: Any) -> Any:
    """A setting as `Config` has it: paths are text there, and pairs are tuples."""
    return os.fspath(value) if isinstance(value, os.PathLike) else tuple(value) if isinstance(value, list) else value
