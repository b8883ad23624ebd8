"""Files: where caches go, writing whole or not at all, downloads, rows of JSON lines, what a user names in code."""

from pathlib import Path

import pytest
import torch

from gnfast.errors import InputError
from gnfast.io.downloads import download
from gnfast.io.files import atomic_write, cache_root
from gnfast.io.objects import load_object
from gnfast.io.rows import read_rows
from gnfast.kernels import autotune


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"GNFAST_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/gnfast"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/gnfast"),
        ({"GNFAST_CACHE": "~/kept"}, "/home/me/kept"),
    ],
    ids=str,
)
def test_all_caches_have_one_root(monkeypatch, variables, wanted):
    for name in ("GNFAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(wanted)
    assert autotune.cache_file(torch.device("cpu")).parent == Path(wanted)


def test_atomic_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def interrupted():
        with atomic_write(path) as part:
            part.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_download_leaves_nothing_behind(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"hello")
    target = tmp_path / "to" / "x"
    with pytest.raises(InputError, match=r"expected MD5 abc, got 5d41402abc4b2a76b9719d911017c592"):
        download(source.as_uri(), target, "md5", "abc", progress=False)
    with pytest.raises(InputError, match=r"could not download .*; fetch it by hand and put it at .*, or not"):
        download((tmp_path / "none").as_uri(), target, "md5", "abc", advice=", or not", progress=False)
    assert list(target.parent.iterdir()) == []


def test_rows_without_those_that_are_damaged(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1, "a": [1, 2], "b": {}}\n{"a": 1}\n\xff\n[1]\n{"step": true}\n{"step": 2}\n{"step": 3')
    assert read_rows(path) == [{"step": 1, "a": [1, 2]}, {"step": 2}]
    assert read_rows(tmp_path / "none") == read_rows(tmp_path) == []


def test_what_a_user_names_may_lie_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a_users_module.py").write_text("number = 3")
    (tmp_path / "wants_another.py").write_text("import another_one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["elsewhere"])
    assert load_object("a_users_module:number", "--net") == 3
    elsewhere = tmp_path / "elsewhere" / "a_users_other.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text("number = 4")
    assert load_object(f"{elsewhere}:number", "--net") == load_object("elsewhere/a_users_other.py:number", "--net") == 4
    for spec, message in (
        ("a_users_module", "--net: got 'a_users_module', wanted module:Class"),
        (":number", "--net: got ':number', wanted module:Class"),
        ("a_users_module:letter", "--net: a_users_module has no letter$"),
        ("a_user's_module.py:number", "--net: a_user's_module.py is not a file$"),
        ("random:Randon", "--net: random has no Randon; did you mean 'Random'"),
        ("wants_another:x", r"--net: wants_another:x cannot be imported \(No module named 'another_one'\)$"),
        ("nowhere_at_all:x", "--net: nowhere_at_all:x cannot be imported .*is its folder on PYTHONPATH"),
    ):
        with pytest.raises(ValueError, match=message):
            load_object(spec, "--net")
