"""The cache of prepared pixels: when it is used, when it is not trusted, and what a full disk leaves behind."""

import contextlib
import errno
import functools
import json
import os
import resource
import shutil
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from gnfast.data import DataError, DataWarning, Request, Source, cache, load
from gnfast.data.dataset import fingerprint_of
from gnfast.data.source import Contents
from gnfast.io.files import own_part
from tests.data.builders import encoded, pixels, refused, write
from tests.forks import fork

load = functools.partial(load, progress=False)


@pytest.fixture(autouse=True)
def _keeps_all(monkeypatch):
    """Whatever is prepared, however small."""
    monkeypatch.setattr(cache, "_SMALL_BYTES", 0)
    warnings.simplefilter("error")


@pytest.fixture
def pictures(tmp_path):
    """A folder of 9 images in two classes, and what is in them."""
    arrays = pixels(9, 7, 5, 3)
    path = write(tmp_path / "pictures", {f"{'ab'[i // 5]}/{i}.png": encoded(image) for i, image in enumerate(arrays)})
    return path, torch.from_numpy(arrays).permute(0, 3, 1, 2)


def kept():
    """The names in the cache, without their key."""
    return sorted(path.name.rsplit("-", 1)[0] + path.suffix for path in cache.folder().glob("*"))


@contextlib.contextmanager
def nothing_is_decoded(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gnfast.data.folder.decode_into", lambda *_: pytest.fail("images were decoded again"))
        yield


def test_second_time_from_the_file(pictures, monkeypatch):
    path, images = pictures
    first = load(path)
    assert kept() == ["pictures-train-full.bin", "pictures-train-full.json"]
    with nothing_is_decoded(monkeypatch):
        second = load(path)
    without = load(path, cache=False)
    for dataset in (first, second, without):
        assert torch.equal(dataset.images, images)
        assert dataset.labels.tolist() == [0] * 5 + [1] * 4
        assert (dataset.name, dataset.classes) == ("pictures", ("a", "b"))
        assert dataset.fingerprint == without.fingerprint
    assert second.recorded == fingerprint_of(second)


def test_layout_is_as_documented(pictures):
    path, _ = pictures
    load(path, resolution=3, crop="square")
    (entry,) = cache.entries()
    assert entry.nbytes == sum(file.stat().st_size for file in cache.folder().iterdir())
    header = json.loads(entry.path.read_text())
    shape, size = header["shape"], 9 * 3 * 3 * 3
    assert shape == [9, 3, 3, 3]
    raw = entry.data.read_bytes()
    assert (
        np.frombuffer(raw, np.uint8, size).reshape(shape).tolist()
        == load(path, resolution=3, crop="square").images.tolist()
    )
    assert np.frombuffer(raw[248:], "<i8").tolist() == [0] * 5 + [1] * 4
    assert header["source"]["path"] == str(path)


def test_writing_to_the_images_changes_neither_file_nor_others(pictures):
    path, images = pictures
    first, second = load(path), load(path)
    first.images.zero_()
    assert not first.images.any()
    assert torch.equal(second.images, images)
    assert torch.equal(load(path).images, images)


def test_what_is_asked_is_part_of_the_key(pictures):
    path, _ = pictures
    asked = [
        {},
        {"resolution": 3, "crop": "square"},
        {"channels": 1},
        {"channels": 3},
        {"crop": 4},
        {"crop": 4, "resolution": 3},
    ]
    shapes = [tuple(load(path, **options).images.shape[1:]) for options in asked]
    assert shapes == [(3, 7, 5), (3, 3, 3), (1, 7, 5), (3, 7, 5), (3, 4, 4), (3, 3, 3)]
    assert len(cache.entries()) == 6
    assert [tuple(load(path, **options).images.shape[1:]) for options in asked] == shapes


BLACK = encoded(np.zeros((7, 5, 3), np.uint8))
CHANGES = {
    "other content": lambda path: (path / "a" / "0.png").write_bytes(BLACK),
    "new file": lambda path: (path / "a" / "00.png").write_bytes(BLACK),
    "removed file": lambda path: (path / "a" / "0.png").unlink(),
    "renamed file": lambda path: (path / "a" / "0.png").rename(path / "b" / "0.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_source_is_seen(pictures, change):
    path, _ = pictures
    old = load(path)
    CHANGES[change](path)
    new = load(path)
    assert new.fingerprint != old.fingerprint
    assert new.fingerprint == load(path, cache=False).fingerprint


def test_an_archive_that_changed_is_seen(pictures, tmp_path):
    path, images = pictures
    archive = shutil.make_archive(str(tmp_path / "x"), "zip", path)
    assert torch.equal(load(archive).images, images)
    CHANGES["removed file"](path)
    shutil.make_archive(str(tmp_path / "x"), "zip", path)
    assert torch.equal(load(archive).images, images[1:])


def flip(entry, place):
    """One bit of a byte of pixels and labels."""
    content = bytearray(entry.data.read_bytes())
    content[place] ^= 1
    entry.data.write_bytes(content)


def special(path):
    path.unlink()
    os.mkfifo(path)


def rewrite(entry, **changes):
    entry.path.write_text(json.dumps({**entry.header, **changes}))


DAMAGE = {
    "truncated": lambda entry: os.truncate(entry.data, entry.data.stat().st_size - 1),
    "longer": lambda entry: entry.data.write_bytes(entry.data.read_bytes() + b"x"),
    "one bit": lambda entry: flip(entry, 100),
    "one label": lambda entry: flip(entry, -8),
    "no data": lambda entry: entry.data.unlink(),
    "no JSON": lambda entry: entry.path.write_text("{"),
    "deep JSON": lambda entry: entry.path.write_text("[" * 200_000),
    "no text": lambda entry: entry.path.write_bytes(b"\xff" + entry.path.read_bytes()),
    "no fingerprint": lambda entry: rewrite(entry, fingerprint=None),
    "other shape": lambda entry: rewrite(entry, shape=[9, 7, 5, 3]),
    "no sizes": lambda entry: rewrite(entry, shape=[9, "3", -7, 5.0]),
    "no names": lambda entry: rewrite(entry, classes=[["a"], 1]),
    "pipe": lambda entry: special(entry.path),
    "pipe of pixels": lambda entry: special(entry.data),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_mended(pictures, damage):
    path, images = pictures
    wanted = load(path).fingerprint
    (entry,) = cache.entries()
    DAMAGE[damage](entry)
    with pytest.warns(DataWarning, match="is damaged and prepared again"):
        again = load(path)
    assert torch.equal(again.images, images)
    assert again.labels.tolist() == [0] * 5 + [1] * 4
    assert again.fingerprint == fingerprint_of(again) == wanted
    assert len(kept()) == 2
    load(path)


def test_a_copied_cache_is_trusted_after_a_look_at_its_content(pictures, monkeypatch):
    path, _ = pictures
    load(path)
    (entry,) = cache.entries()
    os.utime(entry.data, ns=(1, 1))
    looks = []
    monkeypatch.setattr(cache, "fingerprint_of", lambda dataset, progress: looks.append(1) or fingerprint_of(dataset))
    with nothing_is_decoded(monkeypatch):
        load(path)
        load(path)
    assert len(looks) == 1


def test_verify_reads_the_content(pictures):
    path, _ = pictures
    load(path)
    (entry,) = cache.entries()
    cache.verify(entry, progress=False)
    time = entry.data.stat().st_mtime_ns
    flip(entry, 100)
    os.utime(entry.data, ns=(time, time))
    with pytest.raises(DataError, match="is damaged: expected the fingerprint"):
        cache.verify(entry, progress=False)
    DAMAGE["truncated"](entry)
    with pytest.raises(DataError, match=r"is damaged: .* should have \d+ bytes and has \d+"):
        cache.verify(entry, progress=False)


@contextlib.contextmanager
def largest_file(nbytes):
    """The kernel refuses larger files, as it does where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_is_said_before_and_leaves_nothing(pictures):
    path, images = pictures
    with largest_file(500), pytest.raises(DataError, match=r"not enough room in .*prepared: .* GiB.*GNFAST_CACHE"):
        load(path)
    assert kept() == []
    assert torch.equal(load(path, cache=False).images, images)


@pytest.mark.parametrize("at", ["labels", "description"])
def test_no_room_at_the_end_leaves_nothing(pictures, at, monkeypatch):
    path, images = pictures

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if at == "labels":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(json, "dumps", lambda value, indent=None, **kwargs: full() if indent else "{}")
        refused("not enough room", path)
    assert kept() == []
    assert torch.equal(load(path).images, images)


def test_an_interrupted_preparation_leaves_nothing(pictures, monkeypatch):
    path, _ = pictures

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gnfast.data.folder.decode_into", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(path)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "fingerprint_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(path)
    assert kept() == []


def test_what_a_killed_preparation_left_goes_with_the_next_one(pictures):
    path, _ = pictures
    cache.folder().mkdir(parents=True)
    left = cache.folder() / "other-train-full-0.bin.0123abcd.part"
    left.write_bytes(b"half")
    with own_part(cache.folder() / "under-way.bin") as busy:
        assert cache.leftovers() == [left]
        load(path)
        assert busy.exists()
        assert not left.exists()
        assert cache.leftovers() == []


def forked(function):
    """The id of a fork of this process that calls `function`, and what it prints."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = fork()
    if child:
        os.close(writer)
        return child, os.fdopen(reader)
    status = 1
    try:
        # The threads of this process are not in the fork.
        torch.set_num_threads(1)
        with os.fdopen(writer, "w") as out, contextlib.redirect_stdout(out):
            function()
        status = 0
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    finally:
        os._exit(status)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing(number, heard):
    def read(canvas):
        canvas.expect(1 << 10)
        canvas.extend(np.zeros((1, 3, 64, 64), np.uint8))
        print(*kept(), flush=True)
        time.sleep(60)

    child, output = forked(lambda: cache.prepared(Source("slow", Request(progress=False), {}, read)))
    with output:
        assert ".part" in output.readline()
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number
    assert kept() == []


def test_a_folder_that_cannot_be_written(pictures, tmp_path, monkeypatch):
    path, images = pictures
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path / "file"))
    refused(r"the cache folder .*file/prepared cannot be written .* cache=False", path)
    assert torch.equal(load(path, cache=False).images, images)


def test_small_and_quick_is_not_kept(pictures, monkeypatch):
    path, images = pictures
    load("digits")
    assert kept() == []
    monkeypatch.setattr(cache, "_SMALL_BYTES", 1 << 20)
    load(path)
    assert kept() == []
    monkeypatch.setattr(cache, "_WORTH_SECONDS", 0)
    for _ in range(2):
        assert torch.equal(load(path).images, images)
    assert len(kept()) == 2


def test_skipped_files_are_told_every_time(pictures):
    path, images = pictures
    (path / "a" / "broken.png").write_bytes(b"hello")
    for _ in range(2):
        with pytest.warns(DataWarning, match=r"1 of 10 files skipped: a/broken.png"):
            dataset = load(path)
        assert dataset.skipped == 1
        assert torch.equal(dataset.images, images)


def test_grey_before_colour(pictures):
    """The file for grey images is exchanged for a larger one when the first image in colour comes."""
    path, images = pictures
    grey = np.arange(35, dtype=np.uint8).reshape(7, 5)
    for i in range(4):
        (path / "a" / f"-{i}.png").write_bytes(encoded(grey + i))
    for dataset in (load(path), load(path), load(path, cache=False)):
        for i in range(4):
            assert torch.equal(dataset.images[i], torch.from_numpy(grey + i).expand(3, 7, 5))
        assert torch.equal(dataset.images[4:], images)
    assert len(kept()) == 2


def test_pixels_of_a_removed_entry_stay_readable(pictures):
    path, images = pictures
    dataset = load(path)
    cache.entries()[0].remove()
    assert torch.equal(dataset.images, images)


def test_processes_wait_for_each_other(tmp_path):
    """As the ranks of one run: one of them prepares, the others take what it prepared."""
    entered, goes_on = threading.Event(), threading.Event()
    reads = []

    def read(canvas):
        reads.append(threading.current_thread().name)
        canvas.expect(8)
        canvas.extend(np.zeros((4, 1, 2, 2), np.uint8))
        entered.set()
        assert goes_on.wait(10)
        canvas.extend(np.ones((4, 1, 2, 2), np.uint8))
        return Contents()

    source = Source("slow", Request(progress=False), {}, read)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.prepared, source)
        assert entered.wait(10)
        second = pool.submit(cache.prepared, source)
        while len(reads) < 2:
            time.sleep(0.01)
        assert not second.done()
        goes_on.set()
        assert torch.equal(first.result(10).images, second.result(10).images)
    assert second.result().recorded
    assert kept() == ["slow-train-full.bin", "slow-train-full.json"]


def test_memory_stays_small_while_a_large_data_set_is_prepared(tmp_path):
    """Preparing 192 MB in a process that may allocate only 96 MB beside what it starts with."""

    def read(canvas):
        canvas.expect(1024)
        block = np.empty((16, 3, 256, 256), np.uint8)
        for i in range(64):
            block[:] = i
            canvas.extend(block)
        return Contents()

    def prepare():
        data_pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = data_pages * resource.getpagesize() + (96 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
        dataset = cache.prepared(Source("large", Request(progress=False), {}, read))
        print(dataset.images.nbytes >> 20, int(dataset.images[-1].min()), len(dataset))

    child, output = forked(prepare)
    with output:
        assert output.read().split() == ["192", "63", "1024"]
    assert os.waitpid(child, 0)[1] == 0
