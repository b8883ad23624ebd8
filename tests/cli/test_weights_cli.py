"""`gnfast weights`: where Inception's weights are or are to be had, and whether a file is them."""

import hashlib

import pytest
import torch

from gnfast.cli import main
from gnfast.metrics import weights
from tests.cli.commands import fails


@pytest.fixture
def official(monkeypatch, tmp_path):
    """A file that takes the place of the official one, in a machine that has it nowhere."""
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    file = tmp_path / "elsewhere.pth"
    file.write_bytes(b"weights")
    monkeypatch.setattr(weights, "OFFICIAL", hashlib.sha256(b"weights").hexdigest())
    return file


def test_it_says_where_to_get_them_until_they_are_there(official, capsys):
    assert main(["weights"]) == 1
    text = capsys.readouterr().out
    places = weights.places()
    assert all(str(word) in text for word in (weights.URL, weights.OFFICIAL, *places))
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_bytes(b"weight")
        assert main(["weights"]) == 1
        place.write_bytes(b"weights")
        capsys.readouterr()
        assert main(["weights"]) == 0
        assert str(place) in capsys.readouterr().out
        place.unlink()


def test_the_whole_checksum_of_a_file_is_compared(official, capsys, monkeypatch):
    assert main(["weights", str(official)]) == 0
    monkeypatch.setattr(weights, "OFFICIAL", weights.OFFICIAL[:8] + "0" * 56)
    assert f"wanted {weights.OFFICIAL}" in fails(capsys, "weights", str(official))
    assert "No such file" in fails(capsys, "weights", str(official) + "x")
    assert "got both" in fails(capsys, "weights", str(official), "--download")
