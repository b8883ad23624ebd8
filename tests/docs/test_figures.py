"""The docs' pictures are what their committed numbers look like."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.figures import drawn
from gnfast.runs.drawing import drawing, png

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
# One of each kind: steps' times, runs of several seeds, a figure of an analysis.
NUMBERS = {
    IMAGES / "cpu.png": ROOT / "benchmarks" / "results" / "cpu.json",
    IMAGES / "training.png": IMAGES / "training.csv",
    IMAGES / "analysis" / "domain-sweep.png": IMAGES / "analysis" / "domain-sweep.csv",
}


@pytest.mark.parametrize("picture", NUMBERS, ids=lambda path: path.stem)
def test_a_picture_is_drawn_again_from_its_numbers(picture, tmp_path):
    again = tmp_path / picture.name
    with drawing():
        again.write_bytes(png(drawn([NUMBERS[picture]], again)))
    ours, theirs = (np.asarray(Image.open(path).convert("L"), dtype=float) for path in (again, picture))
    assert ours.shape == theirs.shape
    # Another version of matplotlib may smooth edges otherwise, but has few pixels that are black for white.
    assert (abs(ours - theirs) > 60).mean() < 2e-4
