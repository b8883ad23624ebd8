"""Small images, and folders, archives and databases of them, as the tests of data sets read."""

import io
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gnfast.data import DataError, load
from gnfast.data.registry import SETS
from gnfast.io.downloads import checksum


def encoded(image, kind="PNG", **options):
    """An image file's bytes, of an image or of (H, W) or (H, W, 3) uint8."""
    out = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(out, kind, **({"lossless": True} if kind == "WEBP" else {}), **options)
    return out.getvalue()


def picture(value, size=(6, 6), mode="RGB", kind="PNG"):
    """An encoded image of one colour; `size` is (width, height)."""
    return encoded(Image.new(mode, size, value), kind)


def grey(value, size=(6, 6)):
    return picture((value, value, value), size)


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def values(dataset):
    """The first channel of each image's first pixel."""
    return dataset.images[:, 0, 0, 0].tolist()


def write(path, files):
    """`files` (name -> bytes) as a folder, zip or tar, by the suffix of `path`."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif ".t" in path.name:
        kind = path.suffix[1:].replace("tgz", "gz").replace("tar", "")
        with tarfile.open(path, f"w:{kind}") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


def refused(message, source, **options):
    """That `load` raises a DataError with this message."""
    with pytest.raises(DataError, match=message):
        load(source, progress=False, **options)


def database(path, rows):
    """An LMDB of `rows` (key -> bytes)."""
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for key, value in rows.items():
            transaction.put(key.encode(), value)
    return path


def describe(monkeypatch, name, **changes):
    """Change what is known of a data set."""
    monkeypatch.setitem(SETS, name, replace(SETS[name], **changes))


def publish(monkeypatch, name, path, **changes):
    """Let the file at `path` be the archive that a data set's authors publish."""
    describe(monkeypatch, name, archive=replace(SETS[name].archive, md5=checksum(path, "md5"), **changes))
