"""Data sets: what is read from where, in which order, and what bad input says."""

import functools
import io
import os
import pickle
import tarfile
import warnings
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gnfast.data import (
    Batches,
    DataError,
    DataWarning,
    ImageDataset,
    ShuffledIndices,
    load,
    random_flip,
    registered,
    to_float,
    to_uint8,
)
from gnfast.data import cifar10 as cifar10_file
from gnfast.data.files import download, md5_of
from gnfast.errors import InputError
from gnfast.io.files import atomic_write
from tests import hostile_files

CIFAR_JPEG = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"
load = functools.partial(load, progress=False)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path / "cache"))


def picture(value, size=(6, 6), mode="RGB"):
    """PNG bytes of one value; `size` is (width, height)."""
    out = io.BytesIO()
    Image.new(mode, size, value).save(out, "PNG")
    return out.getvalue()


RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
CLASSES = {"b/2.png": picture(BLUE), "a/1.png": picture(RED), "b/1.png": picture(GREEN)}
SPLITS = {f"set/{split}/{name}": data for split in ("train", "test") for name, data in CLASSES.items()}


def write(path, files):
    """`files` (name -> bytes) as a folder, zip or tar, by the suffix of `path`."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif ".t" in path.name:
        kind = path.suffix[1:].replace("tgz", "gz").replace("tar", "")
        with tarfile.open(path, f"w:{kind}") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


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
    with pytest.raises(DataError, match=r"'test', 'train'.*got 'val'"):
        load(path, split="val")
    with pytest.raises(DataError, match="must be 'train'"):
        load(write(tmp_path / "flat", CLASSES), split="test")


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
        (["test/1.png", "cover.png"], r"one of those in .* \('test'\), got 'train'"),
    ],
)
def test_splits_that_cannot_be_told(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "folder", one(*names)))


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
    with pytest.raises(DataError, match=f"x.zip: {what}, wanted a regular file"):
        load(tmp_path / "x.zip")
    (tmp_path / "x.zip").rename(tmp_path / "img_align_celeba.zip")
    with pytest.raises(DataError, match=what):
        load("celeba", root=tmp_path, verify=False)


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
    with pytest.raises(DataError, match=r"no image is left.*notes.txt \(not an image\)"):
        load(write(tmp_path / "text", {"notes.txt": b"hello"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it holds no file"):
        load(tmp_path / "empty")


@pytest.mark.parametrize("container", CONTAINERS[1:])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
def test_truncated_archive(tmp_path, container, keep):
    generator = np.random.default_rng(0)
    noise = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(noise, "PNG")
    path = write(tmp_path / container, {f"{i}.png": noise.getvalue() for i in range(3)})
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
    with pytest.raises(DataError, match="no end-of-archive mark"):
        load(path)


def test_not_an_archive(tmp_path):
    (tmp_path / "x.png").write_bytes(picture(RED))
    with pytest.raises(DataError, match="not a folder, zip or tar"):
        load(tmp_path / "x.png")


def test_missing_path_lists_names(tmp_path):
    with pytest.raises(DataError, match=r"digits.*cifar10"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="source must be"):
        load(None)


def test_names_that_climb_out_write_nothing(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    assert len(load(write(inside / "x.tar", {"../a/1.png": picture(RED), "../b/2.png": picture(BLUE)}))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_different_sizes(tmp_path):
    path = write(tmp_path / "sizes", {"1.png": picture(RED, (6, 6)), "2.png": picture(RED, (8, 4))})
    with pytest.raises(DataError, match=r"1.png is 6x6 and 2.png is 8x4; pass resolution="):
        load(path)
    assert load(path, resolution=5).images.shape == (2, 3, 5, 5)


def test_resize_is_pil_bilinear(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    wanted = np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.BILINEAR))
    got = load(write(tmp_path / "f", {"1.png": out.getvalue()}), resolution=4).images[0]
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
    out = io.BytesIO()
    Image.new("RGB", (6, 6), RED).save(out, kind)
    assert colours(load(write(tmp_path / "f", {f"1.{suffix}": out.getvalue()}))) == [0]


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
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(out, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    got = load(write(tmp_path / "f", {f"1.{kind}": out.getvalue()}), crop=4).images[0].permute(1, 2, 0)
    upright = UPRIGHT[orientation](pixels)
    top, left = round((upright.shape[0] - 4) / 2), round((upright.shape[1] - 4) / 2)
    assert np.array_equal(got, upright[top : top + 4, left : left + 4])


def png_16_bit(colour, top):
    """A PNG of 6x6 with values of 16 bits, below `top`; `colour` is 0 for grey, 2 for RGB."""
    values = np.random.default_rng(0).integers(0, top, (6, 6 * (1 + colour)))
    values[0, 0] = top - 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return hostile_files.png(6, 6, 16, colour, content=zlib.compress(rows))


@pytest.mark.parametrize("colour", [0, 2])
def test_fewer_bits_in_16_do_not_become_black(tmp_path, colour):
    path = write(tmp_path / "f", {"1.png": png_16_bit(colour, 1 << 12)})
    with pytest.raises(DataError, match=r"values of its 16-bit images stay below 4096 of 65536, .* scale them"):
        load(path)
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


def test_grey_among_colours_becomes_rgb(tmp_path):
    dataset = load(write(tmp_path / "f", {"1.png": picture(77, mode="L"), "2.png": picture(RED)}))
    assert dataset.images[:, :, 0, 0].tolist() == [[77, 77, 77], [200, 0, 0]]


@pytest.mark.parametrize("memory", [1, 100_000, 1 << 28])
def test_large_images_go_through_threads_in_order(tmp_path, monkeypatch, memory):
    monkeypatch.setattr("gnfast.data.images._MEMORY", memory)
    generator = np.random.default_rng(0)
    files = {}
    for i in range(12):
        out = io.BytesIO()
        pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        pixels[0, 0] = i
        Image.fromarray(pixels).save(out, "PNG")
        files[f"{i:02}.png"] = out.getvalue()
    assert load(write(tmp_path / "f", files)).images[:, 0, 0, 0].tolist() == list(range(12))


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
    with pytest.raises(DataError, match="must be 'train'"):
        load("digits", split="test")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("resolution", 0), ("resolution", 8.0), ("resolution", True), ("channels", 2), ("split", ""), ("crop", -1)],
)
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(DataError, match=f"{argument} must be .*got {value!r}"):
        load("digits", **{argument: value})


def test_registered_have_a_line_each():
    assert {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "stl10", "celeba", "celebahq"} < set(
        registered()
    )
    assert all(len(line) > 20 for line in registered().values())


def test_dataset_checks_itself():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match="images must be uint8"):
        ImageDataset("x", images.float())
    with pytest.raises(DataError, match="labels must be int64"):
        ImageDataset("x", images, torch.zeros(3, dtype=torch.int64), ("a",))
    with pytest.raises(DataError, match="index the 1 classes"):
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
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 3072), dtype=np.uint8)
    batches = [*cifar10_file.BATCHES["train"], *cifar10_file.BATCHES["test"]]
    files = {f"cifar-10-batches-py/{name}": python2_pickle(images[i], [i] * 4) for i, name in enumerate(batches)}
    path = write(tmp_path / cifar10_file.ARCHIVE.name, {"cifar-10-batches-py/readme.html": b"hello", **files})
    monkeypatch.setattr(cifar10_file, "ARCHIVE", replace(cifar10_file.ARCHIVE, md5=md5_of(path)))
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
    with pytest.raises(DataError, match="'train' or 'test'"):
        load(path, split="val")


def test_cifar10_checksum(official, monkeypatch):
    path, _ = official
    right = cifar10_file.ARCHIVE.md5
    monkeypatch.setattr(cifar10_file, "ARCHIVE", replace(cifar10_file.ARCHIVE, md5="0" * 32))
    with pytest.raises(DataError, match=f"wrong checksum, expected MD5 {'0' * 32}, got {right}"):
        load(path)
    assert len(load(path, verify=False)) == 20


def test_cifar10_missing_says_how(tmp_path):
    with pytest.raises(DataError, match="download=True"):
        load("cifar10", root=tmp_path)


def test_cifar10_download(official, tmp_path, monkeypatch):
    path, _ = official
    monkeypatch.setattr(cifar10_file, "ARCHIVE", replace(cifar10_file.ARCHIVE, url=path.as_uri()))
    root = tmp_path / "new"
    assert len(load("cifar10", root=root, download=True)) == 20
    assert [file.name for file in root.iterdir()] == [cifar10_file.ARCHIVE.name]


def test_download_leaves_nothing_behind(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"hello")
    target = tmp_path / "to" / "x"
    with pytest.raises(DataError, match=r"expected MD5 abc, got 5d41402abc4b2a76b9719d911017c592"):
        download(source.as_uri(), target, "abc", progress=False)
    with pytest.raises(DataError, match="could not download"):
        download((tmp_path / "none").as_uri(), target, "abc", progress=False)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"cos\nsystem\n(S'touch hacked'\ntR.", id="os.system"),
        pytest.param(b"cbuiltins\neval\n(S'1'\ntR.", id="eval"),
        pytest.param(b"cnumpy\nload\n(S'x'\ntR.", id="numpy.load"),
        pytest.param(pickle.dumps(functools.partial(print, 1)), id="partial"),
    ],
)
def test_hostile_pickle_is_refused(official, tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    name = "cifar-10-batches-py/test_batch"
    path = write(tmp_path / "bad.tar.gz", {name: payload})
    with pytest.raises(DataError, match="does not need"):
        load(path, split="test", verify=False)
    assert not os.path.exists("hacked")


@pytest.mark.parametrize("dtype", [b"U\x02O8", b"U\x03V99", b"U\x02f8", b"]", b"U\x02i1"])
def test_only_bytes_become_pixels(tmp_path, dtype):
    """numpy's own constructors would write where the pickle says."""
    good = python2_pickle(np.zeros((4, 3072), np.uint8), [1] * 4)
    path = tmp_path / "bad.tar.gz"
    for content in (good, good.replace(b"U\x02u1", dtype)):
        write(path, {"cifar-10-batches-py/test_batch": content})
        if content == good:
            assert load(path, split="test", verify=False).labels.tolist() == [1] * 4
        else:
            with pytest.raises(DataError, match="'data' must be a uint8 array of shape"):
                load(path, split="test", verify=False)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"Nr\xff\xff\xff\x7f.", id="a place in the memo that takes 32 GB"),
        pytest.param(b"\x80\x05\x96" + (1 << 34).to_bytes(8, "little") + b".", id="16 GB of bytes"),
        pytest.param(b"}" + b")" + b"\x85" * 100_000 + b"K\x01s.", id="a tuple whose hash overflows the stack"),
    ],
)
def test_steps_that_cifar_does_not_need(tmp_path, payload):
    path = write(tmp_path / "bad.tar.gz", {"cifar-10-batches-py/test_batch": payload})
    with pytest.raises(DataError, match="test_batch cannot be read"):
        load(path, split="test", verify=False)


@pytest.mark.parametrize(
    "content", [{"data": 1}, [1], {"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, {"labels": [1]}]
)
def test_malformed_batch(tmp_path, content):
    path = write(tmp_path / "bad.tar.gz", {"cifar-10-batches-py/test_batch": pickle.dumps(content, protocol=4)})
    with pytest.raises(DataError, match="test_batch"):
        load(path, split="test", verify=False)


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


def test_float_and_back():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = to_float(images)
    assert (floats.dtype, float(floats.min()), float(floats.max())) == (torch.float32, -1, 1)
    assert torch.equal(to_uint8(floats), images)
    assert to_uint8(torch.tensor([-2.0, 0.0, 2.0])).tolist() == [0, 128, 255]
    with pytest.raises(DataError, match="must be uint8"):
        to_float(floats)
    with pytest.raises(DataError, match="must be floating"):
        to_uint8(images)


def test_flip_mirrors_about_half():
    images = torch.arange(8, dtype=torch.uint8).expand(400, 1, 8, 8).contiguous()
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped[:, 0, 0, 0] == 7).sum().item()
    assert 150 < mirrored < 250
    assert torch.equal(flipped.sort(-1).values, images)


def test_indices_cover_every_epoch():
    indices = ShuffledIndices(10, seed=3)
    batches = torch.cat([indices.next_batch(7) for _ in range(10)]).reshape(7, 10)
    assert (batches.sort(1).values == torch.arange(10)).all()
    assert len({tuple(row.tolist()) for row in batches}) == 7
    assert indices.epoch == 7
    assert len(ShuffledIndices(3).next_batch(10)) == 10


@pytest.mark.parametrize("before", [0, 3, 5, 11])
def test_resume_is_exact(tmp_path, before):
    generator = torch.Generator().manual_seed(0)
    dataset = ImageDataset("noise", torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8, generator=generator))
    batches = Batches(dataset, 4, seed=1, flip=True)
    for _ in range(before):
        next(batches)
    torch.save(batches.state_dict(), tmp_path / "state.pt")
    wanted = [next(batches) for _ in range(12)]
    again = Batches(dataset, 4, seed=99, flip=True)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch, expected in zip(again, wanted, strict=False):
        assert torch.equal(batch.images, expected.images)


def test_batches_leave_the_global_generator_alone():
    dataset = ImageDataset("zeros", torch.zeros(20, 1, 4, 4, dtype=torch.uint8))
    state = torch.get_rng_state()
    batch = Batches(dataset, 4, flip=True).next_batch()
    assert batch.images.shape == (4, 1, 4, 4)
    assert batch.labels is None
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_refuse():
    dataset = ImageDataset("zeros", torch.zeros(20, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(DataError, match="batch_size must be"):
        Batches(dataset, 0)
    with pytest.raises(DataError, match="seed must be"):
        Batches(dataset, 4, seed=-1)
    with pytest.raises(DataError, match="lacks"):
        Batches(dataset, 4).load_state_dict({})
    other = ImageDataset("zeros", torch.zeros(21, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(DataError, match="with 21 images, this one has 20"):
        Batches(dataset, 4).load_state_dict(Batches(other, 4).state_dict())


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
    assert dataset.classes == cifar10_file.CLASSES
