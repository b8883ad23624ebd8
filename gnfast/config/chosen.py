"""The settings of a run: those of a preset or a `Config`, and what differs from them."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

from gnfast.config.config import Config, option
from gnfast.config.presets import PRESETS
from gnfast.config.together import without_effect
from gnfast.errors import InputError, unknown, warn_user

OWN = "custom"
"""The name of a run whose settings are nobody's."""

_NAMES = [field.name for field in dataclasses.fields(Config)]
_PARTS = {field.name: field.default for field in dataclasses.fields(Config) if field.name.endswith("split")}
"""The settings that name parts of a data set."""


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
    if has_images:
        for word in ("data", *_PARTS):
            if word in changes:
                raise InputError(f"{word}: got {getattr(made, word)!r}, wanted none with dataset=…")
        made = dataclasses.replace(made, data="", data_root="", **_PARTS)
    made = of_its_data(made, usual, changes)
    for word, other in without_effect(made, usual):
        warn_user(f"{option(word)} has no effect without {other}", UserWarning)
    return name, made


def of_its_data(config: Config, usual: Config, given: Collection[str]) -> Config:
    """Settings that take other images than the preset, which then does not say which part of these.

    Args:
        config, usual: the settings, and those that they differ from.
        given: the names of those that somebody has stated.
    """
    if config.data == usual.data or not usual.data:
        return config
    return dataclasses.replace(config, **{name: part for name, part in _PARTS.items() if name not in given})


def _plain(value: Any) -> Any:
    """A setting as `Config` has it: paths are text there, and pairs are tuples."""
    return os.fspath(value) if isinstance(value, os.PathLike) else tuple(value) if isinstance(value, list) else value
