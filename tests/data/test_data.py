"""Data sets: what is read from where, in which order, and what bad input says."""

import functools
import os
import pickle
import tarfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gnfast.data import DataError, DataWarning, ImageDataset, archive, load
from gnfast.data.registry import SETS
from gnfast.errors import InputError
from tests import hostile_files
from tests.data.builders import encoded, picture, pixels, publish, refused, values, write

CIFAR_JPEG = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"
load = functools.partial(load, progress=False)

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
CLASSES = {"b/2.png": picture(BLUE), "a/1.png": picture(RED), "b/1.png": picture(GREEN)}
SPLITS = {f"set/{split}/{name}": data for split in ("train", "test") for name, data in CLASSES.items()}


def colours(dataset):
    """Which of red, green and blue each image is."""
    return dataset.images[:, :, 0, 0].argmax(1).tolist()


CONTAINERS = ["folder", "x.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.xz", "x.tar.bz2"]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("files", [CLASSES, SPLITS], ids=["classes", "splits"])
def test_containers_agree(tmp_path, container, files):
    dataset = load(write(tmp_path / container, files))
    assert dataset.images.shape == (3, 3, 6, 6)
    assert colours(dataset) == [0, 1, 2]
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.classes == ("a", "b")
    assert dataset.name == container.partition(".")[0]
    assert dataset.skipped == 0
    assert dataset.fingerprint == load(write(tmp_path / "same", CLASSES)).fingerprint


def test_splits(tmp_path):
    files = {**SPLITS, "set/test/c/3.png": picture(RED)}
    path = write(tmp_path / "x.tar.xz", files)
    assert len(load(path)) == 3
    assert load(path, split="test").classes == ("a", "b", "c")
    refused(r"split of .*: got 'val', wanted one of 'test', 'train'", path, split="val")
    refused(r"split of .*flat: got 'test', wanted 'train'", write(tmp_path / "flat", CLASSES), split="test")


def one(*names):
    return {name: picture(RED if "train" in name.lower() else BLUE) for name in names}


@pytest.mark.parametrize(
    ("names", "beside"),
    [
        (["train/1.png", "test/1.png", "extra/1.png"], 1),
        (["train/1.png", "test/1.png", "cover.png"], 1),
        (["train/1.png", "cover.png"], 1),
        (["set/train/1.png", "set/test/1.png", "cover.png", "other/1.png"], 2),
        (["Train/1.png", "TEST/1.png"], 0),
        (["training/1.png", "Testing/1.png"], 0),
        (["train/1.png", "val/a/1.png", "val/b/2.png"], 0),
        (["train2017/1.png", "val2017/1.png", "annotations/1.png"], 1),
        (["trainA/1.png", "testA/1.png"], 0),
        (["seg_train/seg_train/1.png", "seg_test/seg_test/1.png", "seg_pred/1.png"], 1),
    ],
)
@pytest.mark.parametrize("container", ["folder", "x.tar.gz"])
def test_what_lies_beside_the_splits_is_in_none(tmp_path, names, beside, container):
    path = write(tmp_path / container, one(*names))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load(path)
    assert (colours(dataset), dataset.labels, dataset.skipped) == ([0], None, beside)
    assert all("(beside the folders of the splits)" in str(warning.message) for warning in caught)
    assert len(caught) == (beside > 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test/1.png", "cats/1.png"], "the folders cats, test: is 'test' a split or a class"),
        (
            ["cats/train/1.png", "cats/test/1.png", "dogs/train/1.png", "dogs/test/1.png"],
            r"more than one place \(cats, d",
        ),
        (["trainA/1.png", "trainB/1.png", "testA/1.png"], "more than one folder for a split: testA, trainA, trainB"),
        (["train/1.png", "Train/2.png", "test/1.png"], "more than one folder for a split: Train, test, train"),
        (["test/1.png", "cover.png"], "split of .*: got 'train', wanted one of 'test'"),
    ],
)
def test_splits_that_cannot_be_told(tmp_path, names, message):
    refused(message, write(tmp_path / "folder", one(*names)))


@pytest.mark.parametrize("classes", [("car", "train"), ("bullet train", "cat", "dog", "test tube", "tree")])
def test_train_may_be_a_class(tmp_path, classes):
    assert load(write(tmp_path / "x", one(*(f"{name}/1.png" for name in classes)))).classes == classes


def test_links_are_followed_but_not_in_circles(tmp_path):
    path = write(tmp_path / "folder", CLASSES)
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", {"4.png": picture(RED)})
    for name, target in {"a/x": ".", "a/y": "..", "b/x": "../a", "c": tmp_path / "elsewhere", "d": "d"}.items():
        (path / name).symlink_to(target)
    with pytest.warns(DataWarning, match=r"1 of 6 files skipped: d \(not an image\)"):
        dataset = load(path)
    # b/x/1.png is a/1.png once more: a link is a name, and what names mean is the user's.
    assert (len(dataset), dataset.classes) == (5, ("a", "b", "c"))


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = write(tmp_path / "folder", {"1.png": picture(RED)})
    for place in (path / "2.png", tmp_path / "x.zip"):
        os.mkfifo(place) if kind == "pipe" else place.symlink_to(kind)
    what = "a named pipe" if kind == "pipe" else "a device"
    with pytest.warns(DataWarning, match=rf"2.png \(unreadable: {what}, wanted a regular file\)"):
        assert len(load(path)) == 1
    refused(f"x.zip: {what}, wanted a regular file", tmp_path / "x.zip")
    (tmp_path / "x.zip").rename(tmp_path / "img_align_celeba.zip")
    refused(what, "celeba", root=tmp_path, verify=False)


def test_names_that_are_no_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    write(path, {os.fsdecode(b"caf\xe9/1.png"): picture(RED), "a\nb/2.png": picture(BLUE)})
    dataset = load(path)
    assert (dataset.name, dataset.classes) == ("\\xff", ("a\\x0ab", "caf\\xe9"))
    assert colours(dataset) == [2, 0]


def test_without_a_home(tmp_path, monkeypatch):
    for name in ("HOME", "GNFAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])
    path = write(tmp_path / "folder", CLASSES)
    assert len(load("digits")) == 1797
    assert len(load(path, cache=False)) == 3
    with pytest.raises(InputError, match="there is no home folder for the cache: set GNFAST_CACHE"):
        load(path)
    with pytest.raises(InputError, match="~nobody-at-all/x: Could not determine home"):
        load("~nobody-at-all/x")


def test_without_class_folders(tmp_path):
    flat = load(write(tmp_path / "flat", {"2.png": picture(BLUE), "10.png": picture(RED)}))
    assert (flat.labels, flat.classes, colours(flat)) == (None, (), [0, 2])
    mixed = load(write(tmp_path / "mixed", {**CLASSES, "top.png": picture(RED)}))
    assert mixed.labels is None
    assert len(mixed) == 4


def test_skipped_files_are_counted_once(tmp_path):
    broken = picture(RED, (64, 64))[:60]
    extra = {"notes.txt": b"hello", "a/broken.png": broken, "a/text.jpg": b"hello", ".DS_Store": b"x"}
    path = write(tmp_path / "x.zip", {**CLASSES, **extra})
    with pytest.warns(DataWarning, match=r"3 of 6 files skipped: .*notes.txt \(not an image\)") as caught:
        dataset = load(path)
    assert len(caught) == 1
    assert "a/broken.png (unreadable" in str(caught[0].message)
    assert (len(dataset), dataset.skipped) == (3, 3)
    assert dataset.classes == ("a", "b")


def test_nothing_left(tmp_path):
    refused(r"no image is left.*notes.txt \(not an image\)", write(tmp_path / "text", {"notes.txt": b"hello"}))
    (tmp_path / "empty").mkdir()
    refused("it holds no file", tmp_path / "empty")


@pytest.mark.parametrize("container", CONTAINERS[1:])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
def test_truncated_archive(tmp_path, container, keep):
    path = write(tmp_path / container, {f"{i}.png": encoded(pixels(64, 64, 3)) for i in range(3)})
    whole = path.read_bytes()
    if container == "x.tar":
        whole = whole.rstrip(b"\0")  # Cut in the content, not in the padding that follows the end mark.
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match="truncated or damaged") as error:
        load(path)
    assert str(path) in str(error.value)


def test_tar_cut_between_members(tmp_path):
    path = write(tmp_path / "x.tar", CLASSES)
    path.write_bytes(path.read_bytes()[: 2 * 1024])
    refused("no end-of-archive mark", path)


def test_what_is_no_source(tmp_path):
    (tmp_path / "x.png").write_bytes(picture(RED))
    refused("is no folder, zip, tar, Parquet file or LMDB", tmp_path / "x.png")
    refused("nowhere', which does not exist", tmp_path / "nowhere")
    refused(r"wanted a path that exists or one of .*cifar10, .*digits", "nowhere")
    refused("source: got None, wanted a path or one of", None)


def test_names_that_climb_out_write_nothing(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    assert len(load(write(inside / "x.tar", {"../a/1.png": picture(RED), "../b/2.png": picture(BLUE)}))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_different_sizes(tmp_path):
    path = write(tmp_path / "sizes", {"1.png": picture(RED, (6, 6)), "2.png": picture(RED, (8, 4))})
    refused(r"1.png is 6x6 and 2.png is 8x4; pass resolution=", path)
    with pytest.warns(DataWarning, match=r"1 of 2 images are not square and are stretched to 5x5; --crop square"):
        stretched = load(path, resolution=5)
    assert stretched.images.shape == (2, 3, 5, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load(path, resolution=5, crop=0).images, stretched.images)


def test_transparency_that_is_lost_is_said(tmp_path, recwarn):
    opaque = {"solid.png": picture((*RED, 255), mode="RGBA"), "plain.png": picture(RED)}
    load(write(tmp_path / "opaque", opaque))
    assert not recwarn.list
    clear = {"clear.png": picture((*RED, 0), mode="RGBA"), "grey.png": picture((9, 254), mode="LA")}
    # A palette of which one colour is transparent.
    clear["palette.png"] = encoded(Image.new("P", (6, 6), 0), transparency=0)
    with pytest.warns(DataWarning, match="3 of 5 images lose their transparency, and the colours below it"):
        load(write(tmp_path / "some", opaque | clear))


def test_the_largest_square_in_the_middle(tmp_path, recwarn):
    images = {"1.png": pixels(8, 4, 3), "2.png": pixels(5, 9, 3)}
    path = write(tmp_path / "f", {name: encoded(image) for name, image in images.items()})
    found = load(path, resolution=4, crop="square").images
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), images["1.png"][2:6])
    wanted = Image.fromarray(images["2.png"][:, 2:7]).resize((4, 4), Image.Resampling.BILINEAR)
    assert np.array_equal(found[1].permute(1, 2, 0).numpy(), np.asarray(wanted))
    assert not recwarn
    with pytest.warns(DataWarning, match=r"1 of 2 files skipped.*smaller than the crop of 5x5\); --crop square"):
        assert len(load(path, crop=5)) == 1
    refused("crop: got 'round', wanted a number of pixels, 'square' or None", path, crop="round")


def test_resize_is_pil_bilinear(tmp_path):
    image = pixels(7, 9, 3)
    wanted = np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.BILINEAR))
    path = write(tmp_path / "f", {"1.png": encoded(image)})
    with pytest.warns(DataWarning, match="1 of 1 images are not square"):
        got = load(path, resolution=4).images[0]
    assert np.array_equal(got.permute(1, 2, 0).numpy(), wanted)


MODES = {
    "grey": (picture(77, mode="L"), 77),
    "grey-alpha": (picture((77, 0), mode="LA"), 77),
    "bilevel": (picture(1, mode="1"), 255),
    "16-bit": (picture(77 * 256 + 200, mode="I;16"), 77),
    "rgb": (picture((77, 77, 77)), 77),
    "rgba": (picture((77, 77, 77, 0), mode="RGBA"), 77),
    "palette": (picture(0, mode="P"), 0),
}


@pytest.mark.parametrize("name", MODES)
def test_pixel_formats(tmp_path, name):
    data, value = MODES[name]
    path = write(tmp_path / "f", {"1.png": data})
    default = load(path)
    assert default.images.shape[1] == (1 if name in ("grey", "grey-alpha", "bilevel", "16-bit") else 3)
    for channels in (1, 3):
        images = load(path, channels=channels).images
        assert images.shape == (1, channels, 6, 6)
        assert images.unique().tolist() == [value]


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG", "avif", "webp", "dib", "apng", "pnm"])
def test_suffixes(tmp_path, suffix):
    kind = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "dib": "BMP", "apng": "PNG", "pnm": "PPM"}.get(suffix, suffix)
    assert colours(load(write(tmp_path / "f", {f"1.{suffix}": picture(RED, kind=kind)}))) == [0]


UPRIGHT = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
    9: lambda pixels: pixels,
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied(tmp_path, kind, orientation):
    image, exif = pixels(5, 7, 3), Image.Exif()
    exif[0x112] = orientation
    path = write(tmp_path / "f", {f"1.{kind}": encoded(image, kind, exif=exif)})
    got = load(path, crop=4).images[0].permute(1, 2, 0)
    upright = UPRIGHT[orientation](image)
    top, left = round((upright.shape[0] - 4) / 2), round((upright.shape[1] - 4) / 2)
    assert np.array_equal(got, upright[top : top + 4, left : left + 4])


def png_16_bit(colour, top):
    """A PNG of 6x6 with values of 16 bits, below `top`; `colour` is 0 for grey, 2 for RGB."""
    image = np.random.default_rng(0).integers(0, top, (6, 6 * (1 + colour)))
    image[0, 0] = top - 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    return hostile_files.png(6, 6, 16, colour, content=zlib.compress(rows))


@pytest.mark.parametrize("colour", [0, 2])
def test_fewer_bits_in_16_do_not_become_black(tmp_path, colour):
    path = write(tmp_path / "f", {"1.png": png_16_bit(colour, 1 << 12)})
    refused(r"values of its 16-bit images stay below 4096 of 65536, .* scale them", path)
    write(path, {"2.png": png_16_bit(colour, 1 << 16)})
    assert load(path).images.amax((1, 2, 3)).tolist() == [15, 255]


def test_too_many_pixels(tmp_path):
    files = {"1.png": hostile_files.png(60_000, 60_000), "2.png": hostile_files.png(9000, 9000), "3.png": picture(RED)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(load(write(tmp_path / "f", files))) == 1
    assert len(caught) == 1
    assert "1.png (unreadable: Image size (3600000000 pixels) exceeds limit" in str(caught[0].message)
    assert "2.png (unreadable: 9000x9000 is larger than 64 megapixels)" in str(caught[0].message)


@pytest.mark.parametrize("memory", [1, 100_000, 1 << 28])
def test_large_images_go_through_threads_in_order(tmp_path, monkeypatch, memory):
    monkeypatch.setattr("gnfast.data.images._MEMORY", memory)
    images = pixels(12, 64, 64, 3)
    images[:, 0, 0] = np.arange(12)[:, None]
    path = write(tmp_path / "f", {f"{i:02}.png": encoded(image) for i, image in enumerate(images)})
    assert values(load(path)) == list(range(12))


def test_digits():
    dataset = load("digits")
    assert dataset.images.shape == (1797, 1, 8, 8)
    assert (int(dataset.images.min()), int(dataset.images.max())) == (0, 255)
    assert dataset.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert dataset.classes == tuple("0123456789")
    larger = load("digits", resolution=16, channels=3)
    assert larger.images.shape == (1797, 3, 16, 16)
    assert larger.fingerprint != dataset.fingerprint == load("digits").fingerprint
    assert str(dataset) == "digits: 1797 images, 1x8x8, 10 classes"


@pytest.mark.parametrize(
    ("argument", "value"),
    [("resolution", 0), ("resolution", 8.0), ("resolution", True), ("channels", 2), ("split", ""), ("crop", -1)],
)
def test_bad_arguments_are_named(argument, value):
    refused(f"{argument}: got {value!r}, wanted ", "digits", **{argument: value})


def test_dataset_checks_itself():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"images: got torch.float32 of shape .*, wanted uint8"):
        ImageDataset("x", images.float())
    with pytest.raises(DataError, match=r"labels: got torch.int64 of shape \(3,\), wanted int64 of shape"):
        ImageDataset("x", images, torch.zeros(3, dtype=torch.int64), ("a",))
    with pytest.raises(DataError, match="labels: got 0 to 1, wanted 0 to 0"):
        ImageDataset("x", images, torch.tensor([0, 1]), ("a",))


def python2_pickle(images, labels):
    """A batch as Python 2 pickled those of the official archive: byte strings, no bytes type."""
    raw = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(M"
        + len(images).to_bytes(2, "little")
        + b"M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"I00\nT"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tb"
    )
    numbers = b"(" + b"".join(b"K" + bytes([label]) for label in labels) + b"l"
    return b"\x80\x02(U\x04data" + array + b"U\x06labels" + numbers + b"d."


@pytest.fixture
def official(tmp_path, monkeypatch):
    """An archive of the official one's layout with 4 images in each of the 5 + 1 batches, and its images."""
    images, known = pixels(6, 4, 3072), SETS["cifar10"]
    batches = [*known.splits["train"], *known.splits["test"]]
    files = {f"{known.folder}/{name}": python2_pickle(images[i], [i] * 4) for i, name in enumerate(batches)}
    path = write(tmp_path / known.archive.name, {f"{known.folder}/readme.html": b"hello", **files})
    publish(monkeypatch, "cifar10", path)
    return path, images.reshape(6, 4, 3, 32, 32)


def test_cifar10_official(official):
    path, images = official
    for dataset in (load("cifar10", root=path), load("cifar10", root=path.parent), load(path)):
        assert dataset.name == "cifar10"
        assert np.array_equal(dataset.images.numpy(), images[:5].reshape(20, 3, 32, 32))
        assert dataset.labels.tolist() == [i for i in range(5) for _ in range(4)]
        assert dataset.classes[3] == "cat"
    test = load("cifar10", root=path, split="test", resolution=16, channels=1)
    assert test.images.shape == (4, 1, 16, 16)
    assert test.labels.tolist() == [5] * 4


def test_cifar100(tmp_path, monkeypatch):
    """Its batches are larger than an image may be."""
    monkeypatch.setattr(archive, "ENTRY_BYTES", 1000)
    images, known = pixels(5, 3072), SETS["cifar100"]
    batch = {"data": images, "fine_labels": [0, 99, 3, 3, 7], "coarse_labels": [0] * 5, "filenames": ["x"] * 5}
    files = {f"{known.folder}/{name}": pickle.dumps(batch, protocol=4) for name in ("train", "test")}
    publish(monkeypatch, "cifar100", write(tmp_path / known.archive.name, files))
    dataset = load("cifar100", root=tmp_path)
    assert np.array_equal(dataset.images.numpy(), images.reshape(5, 3, 32, 32))
    assert dataset.labels.tolist() == [0, 99, 3, 3, 7]
    assert (len(dataset.classes), dataset.classes[0], dataset.classes[50]) == (100, "apple", "mouse")
    assert dataset.classes[99] == "worm"
    assert load(tmp_path / known.archive.name, split="test").name == "cifar100"


def test_cifar10_checksum(official):
    path, _ = official
    right = SETS["cifar10"].archive.md5
    with path.open("ab") as file:
        file.write(b"\0")
    refused(f"wrong checksum, expected MD5 {right}, got ", path)
    assert len(load(path, verify=False)) == 20


def test_cifar10_download(official, tmp_path, monkeypatch):
    path, _ = official
    publish(monkeypatch, "cifar10", path, url=path.as_uri())
    root = tmp_path / "new"
    assert len(load("cifar10", root=root, download=True)) == 20
    assert [file.name for file in root.iterdir()] == [path.name]


def with_array(images, dtype):
    """A batch that asks for another array than one of bytes: numpy's own constructors would write where it says."""
    return python2_pickle(images, [1] * 4).replace(b"U\x02u1", dtype)


NO_BATCHES = {
    "os.system": (b"cos\nsystem\n(S'touch hacked'\ntR.", "does not need"),
    "eval": (b"cbuiltins\neval\n(S'1'\ntR.", "does not need"),
    "numpy.load": (b"cnumpy\nload\n(S'x'\ntR.", "does not need"),
    "partial": (pickle.dumps(functools.partial(print, 1)), "does not need"),
    "a place in the memo that takes 32 GB": (b"Nr\xff\xff\xff\x7f.", "cannot be read"),
    "16 GB of bytes": (b"\x80\x05\x96" + (1 << 34).to_bytes(8, "little") + b".", "cannot be read"),
    "a tuple whose hash overflows the stack": (b"}" + b")" + b"\x85" * 100_000 + b"K\x01s.", "cannot be read"),
    "a number": (pickle.dumps({"data": 1}), "'data' is not"),
    "a list": (pickle.dumps([1]), "'data' is not"),
    "labels alone": (pickle.dumps({"labels": [1]}), "'data' is not"),
    "another label": (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, 4), "its labels are not"),
    **{
        f"dtype {dtype}": (with_array(np.zeros((4, 3072), np.uint8), dtype), "'data' is not a uint8 array of shape")
        for dtype in (b"U\x02O8", b"U\x03V99", b"U\x02f8", b"]", b"U\x02i1")
    },
}


@pytest.mark.parametrize(("payload", "message"), NO_BATCHES.values(), ids=NO_BATCHES)
def test_pickles_that_are_no_batches_are_refused(tmp_path, monkeypatch, payload, message):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "bad.tar.gz", {"cifar-10-batches-py/test_batch": payload})
    refused(f"test_batch.*{message}", path, split="test", verify=False)
    assert not os.path.exists("hacked")


@pytest.mark.skipif(not CIFAR_JPEG.exists(), reason="the CIFAR-10 (JPEG) archive is not at ../shared/data")
def test_cifar10_jpeg_archive(tmp_path):
    path = tmp_path / "tenth.tar"
    with tarfile.open(CIFAR_JPEG) as whole, tarfile.open(path, "w") as tenth:
        for member in whole:
            if member.name.endswith("0.jpg"):
                tenth.addfile(member, whole.extractfile(member))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load(path, split="test")
    assert dataset.images.shape == (1000, 3, 32, 32)
    assert dataset.labels.bincount().tolist() == [100] * 10
    assert dataset.classes == SETS["cifar10"].classes
