"""What the tests of data sets share."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path / "cache"))
