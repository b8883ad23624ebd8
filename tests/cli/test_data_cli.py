"""`gnfast data`: what it prints, and that every mistake is one line."""

import io
import os

import pytest
import torch
from PIL import Image

from gnfast.cli import main
from gnfast.data import ImageDataset, cache, load
from gnfast.data.registry import SETS
from gnfast.data.statistics import channel_statistics
from tests.cli import commands
from tests.data.builders import encoded, pixels, publish, write


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SMALL_BYTES", 0)


@pytest.fixture
def pictures(tmp_path):
    """A folder of 5 images, 4x4, three of them in class a, and two in b."""
    files = {f"{'aaabb'[i]}/{i}.png": encoded(image) for i, image in enumerate(pixels(5, 4, 4, 3))}
    return str(write(tmp_path / "pictures", files))


def says(capsys, *words):
    assert main(["data", *words]) == 0
    return capsys.readouterr().out


def fails(capsys, *words):
    return commands.fails(capsys, "data", *words, prints=True)


def test_help_teaches(capsys):
    text = says(capsys, "--help")
    assert all(f"\n  {command}" in text for command in ("list", "prepare", "verify", "stats", "clear"))
    assert "gnfast data prepare cifar10 --download" in text
    assert str(cache.folder()) in text
    assert main(["data"]) == 2
    capsys.readouterr()
    for command in ("prepare", "verify", "stats", "list", "clear"):
        text = commands.help_of(capsys, "data", command)
        assert f"usage: gnfast data {command}" in text
        if command not in ("list", "clear"):
            assert "Examples:" in text and "--resolution" in text and "Side in pixels" in text


def test_prepare_list_verify_clear(capsys, pictures):
    assert "Nothing is prepared" in says(capsys, "list")
    text = says(capsys, "prepare", pictures, "--resolution", "3")
    (entry,) = cache.entries()
    assert "pictures: 5 images, 3x3x3, 2 classes" in text
    assert str(entry.data) in text
    assert f"fingerprint {load(pictures, resolution=3).fingerprint}" in text
    rows = [line.split() for line in says(capsys, "list").splitlines()]
    assert ["pictures", "train", "5", "3x3x3", "-"] in [row[:5] for row in rows]
    assert "as prepared" in says(capsys, "verify")
    assert "as prepared" in says(capsys, "verify", pictures, "--resolution", "3")
    assert "nothing to verify" in fails(capsys, "verify", pictures)
    (cache.folder() / "x.part").write_bytes(b"half")
    assert "4 B left by preparations that did not end" in says(capsys, "list")
    assert "freed" in says(capsys, "clear", "--all")
    assert list(cache.folder().iterdir()) == []
    assert "Nothing is prepared" in says(capsys, "verify")


def test_prepare_as_a_preset_wants_it(capsys, pictures):
    says(capsys, "prepare", pictures, "--preset", "gngan-cifar10-cnn")
    assert cache.entries()[0].header["shape"] == [5, 3, 32, 32]
    says(capsys, "prepare", pictures, "--preset", "gngan-cifar10-cnn", "--resolution", "5")
    assert sorted(entry.header["shape"][2] for entry in cache.entries()) == [5, 32]
    assert "did you mean 'gngan-cifar10-cnn'" in fails(capsys, "prepare", pictures, "--preset", "gngan-cifar10-cn")


def test_clear_one_of_two(capsys, pictures, tmp_path):
    os.symlink(pictures, tmp_path / "link")
    os.rename(pictures, tmp_path / "others")
    os.symlink(tmp_path / "others", pictures)
    load(tmp_path / "others" / "a", progress=False)
    load(tmp_path / "others", progress=False)
    assert sorted(entry.header["name"] for entry in cache.entries()) == ["a", "others"]
    says(capsys, "clear", "a")
    assert [entry.header["name"] for entry in cache.entries()] == ["others"]
    assert "nothing is prepared of 'a', only of others" in fails(capsys, "clear", "a")


def test_images_of_several_sizes_are_asked_for_an_option_and_not_an_argument(capsys, tmp_path):
    files = {"a.png": encoded(pixels(1, 4, 4, 3)[0]), "b.png": encoded(pixels(1, 4, 5, 3)[0])}
    line = fails(capsys, "stats", str(write(tmp_path / "mixed", files)))
    assert line.endswith("pass --resolution to resize them all")


def test_clearing_everything_is_asked_for(capsys, pictures, monkeypatch):
    says(capsys, "prepare", pictures, "--crop", "square", "--resolution", "3")
    assert " square " in says(capsys, "list")
    assert "got no name, wanted some, or --all for 1 prepared data sets, " in fails(capsys, "clear")
    assert "got --all and pictures" in fails(capsys, "clear", "pictures", "--all")
    line = fails(capsys, "stats", pictures, "--crop", "squre")
    assert "--crop: got 'squre', wanted None or a whole number or square" in line and "Got errors" not in line
    line = fails(capsys, "stats", pictures, "--resolution=big")
    assert "--resolution: got 'big', wanted None or a whole number" in line
    assert "--n: got 'x', wanted a whole number" in fails(capsys, "stats", pictures, "--n=x")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    assert "nothing is deleted" in fails(capsys, "clear")
    assert cache.entries()
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert "Delete 1 prepared data sets" in says(capsys, "clear")
    assert not cache.entries()


def test_verify_finds_damage(capsys, pictures):
    says(capsys, "prepare", pictures)
    (entry,) = cache.entries()
    content = bytearray(entry.data.read_bytes())
    content[0] ^= 1
    entry.data.write_bytes(content)
    assert "1 of 1 are damaged" in fails(capsys, "verify")


def test_verify_an_archive(capsys, tmp_path, monkeypatch):
    path = tmp_path / SETS["cifar10"].archive.name
    path.write_bytes(b"hello")
    assert "wrong checksum, expected MD5 c58f30108f718f92721af3b95e74349a" in fails(
        capsys, "verify", "cifar10", "--data-root", str(tmp_path)
    )
    publish(monkeypatch, "cifar10", path)
    assert f"{path}: as published" in says(capsys, "verify", "cifar10", "--data-root", str(tmp_path))


def test_small_is_not_kept(capsys):
    text = says(capsys, "prepare", "digits")
    assert "1797 images, 1x8x8" in text and "not kept in the cache" in text


def test_stats(capsys, pictures, tmp_path):
    out = tmp_path / "deep" / "look.png"
    text = says(capsys, "stats", pictures, "--out", str(out), "--n", "4")
    images = load(pictures).images.double() / 255
    mean = [f"{value:.4f}" for value in images.mean((0, 2, 3)).tolist()]
    assert f"mean         {' '.join(mean)} (of 0..1)" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["a", "3", "▇" * 30] in lines and ["b", "2", "▇" * 20] in lines
    assert Image.open(out).mode == "RGB"
    assert "--n: got 0" in fails(capsys, "stats", pictures, "--n", "0")


def test_statistics_are_exact_whatever_is_read_at_once(monkeypatch):
    images = torch.randint(0, 256, (50, 3, 6, 5), dtype=torch.uint8)
    monkeypatch.setattr("gnfast.data.statistics._BYTES_AT_ONCE", 1000)
    mean, deviation = channel_statistics(ImageDataset("noise", images))
    scaled = images.double() / 255
    torch.testing.assert_close(mean, scaled.mean((0, 2, 3)))
    torch.testing.assert_close(deviation, scaled.transpose(0, 1).flatten(1).std(1, correction=0))


def test_bad_input_is_one_line(capsys, tmp_path):
    assert "did you mean 'prepare'" in fails(capsys, "prepair")
    assert "which images?" in fails(capsys, "prepare")
    assert "which images?" in fails(capsys, "stats", "--resolution", "3")
    assert "resolution: got 0, wanted" in fails(capsys, "prepare", "digits", "--resolution", "0")
    assert "which does not exist" in fails(capsys, "prepare", str(tmp_path / "none"))
    assert "pass download=True" in fails(capsys, "prepare", "cifar10")
    assert "Unrecognized options: all" in fails(capsys, "list", "all")
