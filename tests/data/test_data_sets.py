"""The published formats, from tiny archives made here: what is read, in which order, and what damage says."""

import gzip
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gnfast.data import DataWarning, load, registered
from gnfast.data.registry import SETS
from gnfast.data.sets import stl10
from gnfast.io.downloads import checksum
from tests.data.builders import database, describe, encoded, grey, picture, pixels, publish, refused, values, write

# STL-10


@pytest.fixture
def stl(tmp_path, monkeypatch):
    """An archive of STL-10's layout with a few images in each split, and the images as (N, C, H, W)."""
    images = {split: pixels(n, 3, 96, 96) for split, n in (("train", 3), ("test", 2), ("unlabeled", 7))}
    monkeypatch.setattr(stl10, "_AT_ONCE", 3)
    files = {f"stl10_binary/{split}_X.bin": data.transpose(0, 1, 3, 2).tobytes() for split, data in images.items()}
    # Labels before the images in one split and behind them in the other: the order in the archive must not matter.
    files = {"stl10_binary/test_y.bin": bytes([10, 1]), **files, "stl10_binary/train_y.bin": bytes([1, 2, 10])}
    path = write(tmp_path / SETS["stl10"].archive.name, {**files, "stl10_binary/class_names.txt": b"x"})
    publish(monkeypatch, "stl10", path)
    return path, images, files


def test_stl10(stl):
    path, images, _ = stl
    for dataset in (load("stl10", root=path.parent), load("stl10", root=path), load(path)):
        assert np.array_equal(dataset.images.numpy(), images["train"])
        assert dataset.labels.tolist() == [0, 1, 9]
        assert (dataset.name, dataset.classes[9]) == ("stl10", "truck")
    assert load(path, split="test").labels.tolist() == [9, 0]
    unlabelled = load(path, split="unlabeled")
    assert np.array_equal(unlabelled.images.numpy(), images["unlabeled"])
    assert (unlabelled.labels, unlabelled.classes) == (None, ())


def test_stl10_is_resized_as_the_papers_do(stl):
    path, images, _ = stl
    got = load(path, split="unlabeled", resolution=48).images
    wanted = [Image.fromarray(x.transpose(1, 2, 0)).resize((48, 48), Image.BILINEAR) for x in images["unlabeled"]]
    assert np.array_equal(got.permute(0, 2, 3, 1).numpy(), np.stack(list(map(np.asarray, wanted))))


def test_stl10_unpacked(stl, tmp_path):
    _, images, files = stl
    root = write(tmp_path / "unpacked", files)
    for path in (root, root / "stl10_binary"):
        dataset = load("stl10", root=path, split="test")
        assert np.array_equal(dataset.images.numpy(), images["test"])
        assert dataset.labels.tolist() == [9, 0]


def test_stl10_damage(stl, tmp_path, monkeypatch):
    path, _, files = stl
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("wrong checksum", "stl10", root=path)
    refused("truncated or damaged", "stl10", root=path, split="unlabeled", verify=False)
    refused(f"stl10 is not at .*/none/{path.name}; pass download=True", "stl10", root=tmp_path / "none")

    def changed(**content):
        path = tmp_path / "changed.tar.gz"
        path.unlink(missing_ok=True)
        new = {**files, **{f"stl10_binary/{name}.bin": data for name, data in content.items()}}
        return write(path, {name: data for name, data in new.items() if data is not None})

    for content, message in (
        ({"train_X": bytes(27648 + 1)}, "it ends within an image, wanted a whole number of 27648 bytes"),
        ({"train_y": bytes([1, 2])}, "train_y.bin: wanted a label for each of the 3 images"),
        ({"train_y": bytes([1, 2, 11])}, "got labels from 1 to 11, wanted 1 to 10"),
        ({"train_X": None}, "has no stl10_binary/train_X.bin"),
    ):
        refused(message, changed(**content), verify=False)
    describe(monkeypatch, "stl10", splits={**SETS["stl10"].splits, "train": 2})
    refused("holds more than 2 images", changed(), verify=False)


# MNIST and Fashion-MNIST


def idx_bytes(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(head + array.tobytes())


@pytest.fixture
def four_files(tmp_path):
    """MNIST's four files with a few images, and their content by split."""
    content = {split: (pixels(n, 28, 28), np.arange(n, dtype=np.uint8)) for split, n in (("train", 5), ("test", 3))}
    for split, files in SETS["mnist"].splits.items():
        for file, array in zip(files, content[split], strict=True):
            (tmp_path / file.name).write_bytes(idx_bytes(array))
    return tmp_path, content


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx(four_files, monkeypatch, name):
    root, content = four_files
    refused(r"train-images-idx3-ubyte\.gz: wrong checksum", name, root=root)
    right = {
        split: tuple(
            replace(file, md5=checksum(root / file.name, "md5"), url=(root / file.name).as_uri()) for file in pair
        )
        for split, pair in SETS[name].splits.items()
    }
    describe(monkeypatch, name, splits=right)
    for split, (images, labels) in content.items():
        for dataset in (load(name, root=root, split=split), load(name, download=True, split=split)):
            assert np.array_equal(dataset.images.numpy(), images[:, None])
            assert dataset.labels.tolist() == labels.tolist()
            assert (dataset.name, len(dataset.classes)) == (name, 10)
    assert load(name, root=root, resolution=32, channels=3).images.shape == (5, 3, 32, 32)


def test_idx_damage(four_files):
    root, _ = four_files
    images = root / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    options = {"root": root, "verify": False}
    for content, message in (
        (whole[:100], "truncated or damaged"),
        (b"hello", "truncated or damaged"),
        (gzip.compress(gzip.decompress(whole)[:-1]), r"it says \[5, 28, 28\], and holds 3919 bytes"),
        (gzip.compress(b"\0\0\x08\x03\0"), "it ends within its header"),
        (gzip.compress(b"\0\0\x0d\x03"), "not an idx file of unsigned bytes in 3 dimensions"),
        (idx_bytes(pixels(4, 28, 28)), "wanted a label below 10 for each of the 4 images"),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "shape .* wanted 1 to 10000000 entries of at most"),
        (idx_bytes(np.zeros((0, 28, 28), np.uint8)), "shape .* wanted 1 to"),
        (gzip.compress(gzip.decompress(whole) + b"x"), r"it says \[5, 28, 28\], and holds more bytes"),
    ):
        images.write_bytes(content)
        refused(message, "mnist", **options)
    images.unlink()
    refused(r"mnist is not at .*pass download=True", "mnist", root=root)
    refused(r"root: got the file .*, wanted the folder", "mnist", root=root / "train-labels-idx1-ubyte.gz")


# CelebA

FACES = {1: 10, 162_770: 20, 162_771: 30, 182_637: 40, 182_638: 50, 202_599: 60}


@pytest.fixture
def faces():
    return {f"img_align_celeba/{number:06}.png": grey(v, (178, 218)) for number, v in FACES.items()}


@pytest.mark.parametrize("container", ["zip", "folder of the folder", "folder"])
def test_celeba_splits(tmp_path, faces, monkeypatch, container):
    root = tmp_path / "celeba"
    write(root, {"list_attr_celeba.txt": b"x"} if container != "folder" else {})
    if container == "zip":
        path = write(root / "img_align_celeba.zip", faces)
        refused("wrong checksum", "celeba", root=root)
        publish(monkeypatch, "celeba", path)
    else:
        write(root, faces)
    if container == "folder":
        root = root / "img_align_celeba"
    wanted = {"train": [10, 20], "valid": [30, 40], "test": [50, 60], "all": [10, 20, 30, 40, 50, 60]}
    for split, expected in wanted.items():
        dataset = load("celeba", root=root, split=split, resolution=8)
        assert values(dataset) == expected
        assert dataset.images.shape[1:] == (3, 8, 8)


def test_celeba_is_cropped_as_mimicry_does(tmp_path):
    array = pixels(218, 178, 3)
    write(tmp_path / "img_align_celeba", {"000001.png": encoded(array)})
    cut = Image.fromarray(array[20:198])
    assert np.array_equal(load("celeba", root=tmp_path).images[0].permute(1, 2, 0), np.asarray(cut))
    small = load("celeba", root=tmp_path, resolution=64).images[0].permute(1, 2, 0)
    assert np.array_equal(small, np.asarray(cut.resize((64, 64), Image.BILINEAR)))
    assert load("celeba", root=tmp_path, crop=0).images.shape == (1, 3, 218, 178)


def test_celeba_missing_says_how(tmp_path):
    refused(r"celeba is not at .*fetch img_align_celeba.zip .* by hand from https", "celeba", root=tmp_path)
    write(tmp_path, {"cat.png": grey(1)})
    refused(r"no image is left in .* for numbered images", "celeba", root=tmp_path)
    write(tmp_path, {"a/1.png": grey(1), "b/01.png": grey(1)})
    refused(r"two images with the number 1, a/1.png and b/01.png", "celeba", root=tmp_path)


@pytest.mark.parametrize("size", [(7, 6), (6, 7), (9, 5), (5, 5)])
@pytest.mark.parametrize("crop", [3, 4, 5])
def test_crop_is_the_middle(tmp_path, size, crop):
    array = pixels(size[1], size[0], 3)
    path = write(tmp_path / "x", {"1.png": encoded(array)})
    top, left = round((size[1] - crop) / 2), round((size[0] - crop) / 2)
    wanted = array[top : top + crop, left : left + crop]
    assert np.array_equal(load(path, crop=crop).images[0].permute(1, 2, 0), wanted)


def test_smaller_than_the_crop(tmp_path):
    path = write(tmp_path / "x", {"1.png": grey(1, (6, 9)), "2.png": grey(2, (9, 9))})
    with pytest.warns(DataWarning, match=r"1 of 2 files skipped: 1.png \(6x9 is smaller than .*7x7\); --crop square"):
        assert values(load(path, crop=7)) == [2]
    refused("no image is left in .* than the crop of 99x99\\); --crop square", path, crop=99)
    refused("crop: 8x8 is smaller than the crop of 9x9", "digits", crop=9)
    assert load("digits", crop=6).images.shape == (1797, 1, 6, 6)


# CelebA-HQ and LMDBs


@pytest.fixture
def hq(monkeypatch):
    """CelebA-HQ with 10 images, of which 7 are in the training part."""
    describe(monkeypatch, "celebahq", splits={"train": range(7), "test": range(7, 10), "all": range(10)})


@pytest.mark.usefixtures("hq")
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", ["{}.png", "{:05}.png", "imgHQ{:05}.png"])
def test_celebahq_write(tmp_path, first, name):
    files = {name.format(first + i): grey(20 * i) for i in range(10)}
    files |= {f"masks/{i:05}_hair.png": grey(1) for i in range(3)}
    root = write(tmp_path / "hq", files)
    assert values(load("celebahq", root=root)) == [20 * i for i in range(7)]
    assert values(load("celebahq", root=root, split="test")) == [140, 160, 180]
    assert len(load("celebahq", root=root, split="all")) == 10


@pytest.mark.usefixtures("hq")
def test_celebahq_second_part_alone(tmp_path):
    root = write(tmp_path / "hq", {f"{i}.png": grey(i) for i in (8, 9, 10)})
    assert values(load("celebahq", root=root, split="test")) == [8, 9, 10]
    refused(r"no image is left in .* for split 'train', of 3 numbered images", "celebahq", root=root)


def test_the_papers_split_is_before_27001(tmp_path):
    root = write(tmp_path / "hq", {f"{i}.png": grey(i % 251) for i in (1, 27_000, 27_001, 30_000)})
    assert values(load("celebahq", root=root)) == [1, 27_000 % 251]
    assert values(load("celebahq", root=root, split="test")) == [27_001 % 251, 30_000 % 251]


@pytest.mark.usefixtures("hq")
def test_lmdb_of_gngan(tmp_path):
    """Keys 0, 1, … in decimal, so that 10 comes before 2 in the database and behind 9 in the data set."""
    path = database(tmp_path / "256", {str(i): grey(10 * i) for i in range(12)})
    assert values(load(path)) == [10 * i for i in range(12)]
    assert values(load("celebahq", root=path)) == [10 * i for i in range(7)]
    assert values(load("celebahq", root=path, split="test")) == [70, 80, 90]
    refused(r"split of .*: got 'test', wanted 'train'", path, split="test")


def test_lmdb_of_faster_gngan(tmp_path):
    rows = {f"d{i}": grey(10 * i) for i in range(12)} | {f"l{i}": str(i % 3).encode() for i in range(12)}
    dataset = load(database(tmp_path / "x", rows))
    assert values(dataset) == [10 * i for i in range(12)]
    assert dataset.labels.tolist() == [i % 3 for i in range(12)]
    assert dataset.classes == ("0", "1", "2")
    assert load(tmp_path / "x", resolution=3, channels=1).images.shape == (12, 1, 3, 3)
    del rows["d5"]
    refused("key 'd5' is missing, although there are 11 images", database(tmp_path / "gap", rows))


def test_lsun(tmp_path):
    """Keys are hashes, values JPEG or WebP of one smaller side, and nothing is cropped unless asked for."""
    rows = {"b1": picture((90,) * 3, (8, 5), kind="WEBP"), "a0": picture((30,) * 3, (5, 7), kind="WEBP")}
    path = database(tmp_path / "church_outdoor_train_lmdb", rows)
    for dataset in (
        load("lsun-church", root=tmp_path, resolution=4),
        load("lsun-church", root=path, resolution=4),
        load(path, resolution=4),
    ):
        assert values(dataset) == [30, 90]
        assert dataset.labels is None
    assert load("lsun-church", root=path, crop=5).images.shape == (2, 3, 5, 5)
    refused("differ in size: a0 is 5x7 and b1 is 8x5; pass resolution=", path)
    advice = "fetch it by hand from http://dl.yf.io/lsun/scenes/church_outdoor_val_lmdb.zip"
    refused(advice, "lsun-church", root=tmp_path, split="val")
    refused(r"lsun-horse is not at .*horse.zip", "lsun-horse", root=tmp_path)


def test_lmdb_unreadable_images_are_skipped(tmp_path):
    path = database(tmp_path / "x", {"0": grey(1), "1": b"hello", "2": grey(3)})
    with pytest.warns(DataWarning, match=r"1 of 3 files skipped: 1 \(not an image, or damaged\)"):
        dataset = load(path)
    assert (values(dataset), dataset.skipped) == ([1, 3], 1)
    refused(r"no image is left in .*: 0 \(not an image, or damaged\)", database(tmp_path / "y", {"0": b"hello"}))


def test_corrupt_lmdb(tmp_path):
    path = database(tmp_path / "x", {str(i): bytes(5000) for i in range(50)})
    data = path / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    refused(r"is truncated: data.mdb has \d+ bytes, and \d+ are in use", path)
    data.write_bytes(b"hello" * 10_000)
    refused("cannot be read as an LMDB", path)


def test_a_damaged_page_of_an_lmdb_ends_no_process_but_its_reader(tmp_path):
    path = database(tmp_path / "x", {str(i): bytes(5000) for i in range(5)})
    data = path / "data.mdb"
    # The size of the first value in the list of a page: 16 MB, where the file has less than one.
    entry = (5000).to_bytes(4, "little") + b"\1\0\1\x000"
    assert entry in data.read_bytes()
    data.write_bytes(data.read_bytes().replace(entry, (5000 + (1 << 24)).to_bytes(4, "little") + entry[4:]))
    refused(r"x is damaged: the process that read it was ended by SIG(BUS|SEGV)", path)


@pytest.mark.parametrize("label", ["99999999", "9" * 5000, "-1", "", "cat"])
def test_lmdb_labels_that_are_no_classes(tmp_path, label):
    path = database(tmp_path / "x", {"d0": grey(1), "l0": label.encode()})
    refused(r"key 'l0': got b'.*', wanted a class in digits, below 100000", path)


def test_lmdb_is_optional(tmp_path, monkeypatch):
    path = database(tmp_path / "x", {"0": grey(1)})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    refused("an LMDB, needs lmdb, which is not installed: pip install lmdb", path)


def test_registered_describe_themselves():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    in_the_docs = re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)
    assert sorted(registered()) == sorted(in_the_docs), "names of data sets in the table of docs/data.md"
    assert all(len(line) > 20 and line.endswith(".") for line in registered().values())


@pytest.mark.parametrize("name", SETS)
def test_an_unknown_split_is_refused_with_those_there_are(name):
    wanted = ", ".join(map(repr, SETS[name].splits))
    refused(f"split of {name}: got 'vales', wanted one of {wanted}$", name, split="vales")


def test_fingerprints_tell_data_sets_apart(stl, tmp_path):
    path, _, _ = stl
    seen = {load(path, split=split, resolution=r).fingerprint for split in SETS["stl10"].splits for r in (None, 48)}
    assert len(seen) == 6
    assert torch.equal(load(path).images, load(path, cache=False).images)
