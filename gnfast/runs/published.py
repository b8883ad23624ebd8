"""What a paper reports for a run's preset, beside the run's own scores."""

from collections.abc import Mapping
from typing import Any

from gnfast.config.config import FREE, Config, as_json, option
from gnfast.config.presets import PRESETS

# Settings that are named where they differ; more are counted.
NAMED = 4


def published(preset: str, settings: Mapping[str, Any]) -> str:
    """`IS 8.49, FID 11.13 (train); this run differs in --width`, or empty where nothing is reported.

    Args:
        preset: the run's, known or not.
        settings: the run's, as its config.json has them.
    """
    known = PRESETS.get(preset)
    if known is None or not known.reported:
        return ""
    # A run of a version that did not have a setting yet had its default.
    own, usual = as_json(Config(data="", resolution=1)) | settings, as_json(known.config)
    decisive = [name for name in usual if name == "data" or (name not in FREE and name != "seed")]
    changed = [option(name) for name in decisive if own[name] != usual[name]]
    if not changed:
        return known.reported
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return f"{known.reported}; this run differs in {', '.join(changed[:NAMED])}{more}"
