"""What a paper reports for a run's preset, beside the run's own scores; and whether the run has the paper's images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gnfast.config.config import FREE, Config, as_json, option
from gnfast.config.presets import PRESETS
from gnfast.data.files import short_name
from gnfast.data.registry import SETS

# Settings that are named where they differ; more are counted.
NAMED = 4


def published(preset: str, settings: Mapping[str, Any], against: str | None = None) -> str:
    """`IS 8.49, FID 11.13 (train); this run differs in --width`, or empty where nothing is reported.

    Scores of other images say nothing about these: then it says that there are none, and why.

    Args:
        preset: the run's, known or not.
        settings: the run's, as its config.json has them.
        against: the data set that it is measured against, where that is not the run's.
    """
    known = PRESETS.get(preset)
    if known is None or not known.reported:
        return ""
    # A run of a version that did not have a setting yet had its default.
    own, usual = as_json(Config(data="", resolution=1)) | settings, as_json(known.config)
    for data in (own["data"], own["data"] if against is None else against):
        if other := own_images(preset, data):
            return f"none for {other}: the scores of {preset} are of {known.config.data}"
    decisive = [name for name in usual if name == "data" or (name not in FREE and name != "seed")]
    changed = [option(name) for name in decisive if own[name] != usual[name]]
    if not changed:
        return known.reported
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return f"{known.reported}; this run differs in {', '.join(changed[:NAMED])}{more}"


def own_images(preset: str, data: Any) -> str:
    """A short name of the images at `data` where they are not the preset's; empty where they are, or may be.

    The preset's may also lie in a folder or a file of its name, or in its official archive.
    """
    usual = PRESETS[preset].config.data if preset in PRESETS else ""
    if not usual or data == usual:
        return ""
    path, archive = Path(str(data)), SETS[usual].archive
    name = short_name(path) or str(data) or "images from Python"
    is_usual = name == usual or (archive is not None and path.name == archive.name)
    return "" if is_usual else name
