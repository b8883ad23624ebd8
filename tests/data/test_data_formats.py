"""Data sets as other libraries keep them: `datasets` on disk, Parquet, and WebDataset's shards."""

import json
import sys

import pytest
import torch

from gnfast.cli import main
from gnfast.data import DataWarning, load
from tests.data.builders import grey, picture, refused, values, write

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(images, labels=None, features=None, **columns):
    """A table of encoded images as `datasets` lays it out, with what it writes about its columns."""
    rows = [image if isinstance(image, dict) else {"bytes": image, "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    data = {"image": pa.array(rows, kind), **({} if labels is None else {"label": labels}), **columns}
    said = {"info": {"features": features}} if features else None
    made = pa.table(data)
    return made.replace_schema_metadata({"huggingface": json.dumps(said)}) if said else made


CLASSES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}


def saved(folder, content, split=None):
    """A folder as `save_to_disk` lays it out."""
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}], "_split": split}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def parquet(path, *arguments, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(*arguments, **columns), path)
    return path


def read(path, **options):
    return load(path, progress=False, **options)


def test_what_datasets_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = {"image": [{"bytes": grey(10 * i), "path": None} for i in range(5)], "label": [0, 1, 1, 0, 1]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict(train=whole, test=whole.select([3, 1])).save_to_disk(tmp_path / "both")
    whole.select([4, 2]).save_to_disk(tmp_path / "one")
    whole.to_parquet(tmp_path / "one.parquet")
    train, test = read(tmp_path / "both"), read(tmp_path / "both", split="test")
    assert (train.name, values(train), train.labels.tolist()) == ("both", [0, 10, 20, 30, 40], [0, 1, 1, 0, 1])
    assert (values(test), test.labels.tolist(), test.classes) == ([30, 10], [0, 1], ("cat", "dog"))
    assert values(read(tmp_path / "one")) == [40, 20]
    assert read(tmp_path / "one.parquet").fingerprint == train.fingerprint
    refused("split of .*both: got 'val', wanted one of 'train', 'test'", tmp_path / "both", split="val")


def test_images_of_a_table_are_prepared_as_those_of_a_folder(tmp_path):
    images = [picture((i, 90, 200), (9, 7)) for i in range(40)]
    path = parquet(tmp_path / "faces.parquet", images)
    folder = write(tmp_path / "faces", {f"{i:02d}.png": image for i, image in enumerate(images)})
    same = {"resolution": 4, "crop": 6, "channels": 1}
    assert torch.equal(read(path, **same).images, read(folder, **same).images)
    assert read(path).images.shape == (40, 3, 7, 9)


def test_commands_prepare_a_table_and_describe_it(tmp_path, capsys, monkeypatch):
    path = saved(tmp_path / "saved", table([grey(0), grey(100)], [0, 1], CLASSES))
    monkeypatch.setattr("gnfast.data.cache._WORTH_SECONDS", 0)
    assert main(["data", "prepare", str(path)]) == 0
    assert "2 images, 3x6x6, 2 classes" in capsys.readouterr().out
    # From the cache alone.
    monkeypatch.setattr("gnfast.data.apart.subprocess.Popen", None)
    assert main(["data", "stats", str(path)]) == 0
    assert "dog" in capsys.readouterr().out


def test_splits_are_in_the_names_of_parquet_files(tmp_path):
    for name, value in (("train-00000-of-00002", 1), ("train-00001-of-00002", 2), ("test-00000-of-00001", 3)):
        parquet(tmp_path / "hub" / "data" / f"{name}.parquet", [grey(value)])
        parquet(tmp_path / "folders" / name[:5] / f"part-{name[-10:]}.parquet", [grey(value)])
    parquet(tmp_path / "plain" / "a.parquet", [grey(4)])
    parquet(tmp_path / "plain" / "b.parquet", [grey(5)])
    (tmp_path / "plain" / "._a.parquet").write_bytes(b"of macOS")
    assert values(read(tmp_path / "hub")) == [1, 2]
    assert values(read(tmp_path / "hub", split="test")) == [3]
    assert values(read(tmp_path / "folders", split="train")) == [1, 2]
    assert values(read(tmp_path / "plain")) == [4, 5]
    refused("got 'val', wanted one of 'test', 'train'", tmp_path / "hub", split="val")
    refused("got 'test', wanted one of 'train'", tmp_path / "plain", split="test")
    parquet(tmp_path / "hub" / "other" / "train-0.parquet", [grey(6)])
    refused(r"more than one folder \(data, other\): pass the path of one", tmp_path / "hub")


def test_the_column_of_images_is_found_or_asked_for(tmp_path):
    plain = pa.table({"jpg": pa.array([grey(7)], pa.binary()), "caption": ["x"]})
    pq.write_table(plain, tmp_path / "binary.parquet")
    assert values(read(tmp_path / "binary.parquet")) == [7]
    masks = parquet(tmp_path / "masks.parquet", [grey(8)], mask=pa.array([grey(0)], pa.binary()))
    with pytest.warns(DataWarning, match="of the columns with images, 'image', 'mask', 'image' is taken"):
        assert values(read(masks)) == [8]
    pq.write_table(plain.append_column("png", plain["jpg"]), tmp_path / "two.parquet")
    refused("the columns 'jpg', 'png' hold images: keep one", tmp_path / "two.parquet")
    pq.write_table(plain.drop_columns("jpg"), tmp_path / "none.parquet")
    refused("no column holds images; the columns are 'caption'", tmp_path / "none.parquet")


def test_labels_of_a_table(tmp_path):
    images = [grey(1), grey(2)]
    assert read(parquet(tmp_path / "plain.parquet", images, [3, 0])).classes == ("0", "1", "2", "3")
    assert read(parquet(tmp_path / "secret.parquet", images, [-1, -1], CLASSES)).labels is None
    refused("1 of 2 images have none", parquet(tmp_path / "part.parquet", images, [None, 1], CLASSES))
    refused("got 2, wanted 0 to 1", parquet(tmp_path / "beyond.parquet", images, [2, 1], CLASSES))
    coarse = CLASSES | {"coarse": CLASSES["label"]}
    with pytest.warns(DataWarning, match="'label', 'coarse' all hold classes"):
        assert read(parquet(tmp_path / "two.parquet", images, [0, 1], coarse, coarse=[0, 0])).labels is None


def test_damaged_tables_are_refused_or_lose_the_damaged_images(tmp_path):
    rows = [grey(1), b"no image", {"bytes": None, "path": "/etc/hostname"}, None, grey(2)]
    rows[3] = {"bytes": None, "path": None}
    with pytest.warns(
        DataWarning, match="3 of 5 files skipped: row 1 .not an image, or damaged., row 2 .*a path without"
    ):
        assert values(read(parquet(tmp_path / "holes.parquet", rows))) == [1, 2]
    whole = parquet(tmp_path / "whole.parquet", [grey(i) for i in range(9)]).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    refused("cannot be read as Arrow or Parquet", tmp_path / "cut.parquet")
    folder = saved(tmp_path / "saved", table([grey(i) for i in range(9)]))
    arrow = folder / "data-0.arrow"
    arrow.write_bytes(arrow.read_bytes()[:900])
    refused("cannot be read as Arrow or Parquet", folder)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../whole.parquet"}]}))
    refused("names '../whole.parquet', wanted a file next to it", folder)
    (folder / "state.json").write_text("[" * 99999)
    refused("state.json cannot be read", folder)


def test_a_table_of_one_image_a_billion_times_is_refused(tmp_path):
    """Parquet keeps a repeated value once: the disk that its pixels need would be full."""
    image = picture(0, (1, 1), "1")
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array([image], pa.binary()))
    pq.write_table(pa.table({"image": column.cast(pa.binary())}), tmp_path / "many.parquet")
    refused("claims 200000 rows in fewer bytes", tmp_path / "many.parquet")


def test_without_pyarrow_a_table_says_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path / "one.parquet", [grey(1)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused("one.parquet, Arrow or Parquet, needs pyarrow, which is not installed: pip install pyarrow", path)


def shard(path, first, count, **others):
    """A tar of samples whose images have the value `first`, `first + 1`, …, and whose class is 1 for odd values."""
    files = {}
    for value in range(first, first + count):
        key = f"{value:04d}"
        files |= {f"{key}.png": grey(value), f"{key}.cls": f"{value % 2}\n".encode(), f"{key}.json": b"{}"}
        files |= {f"{key}.{kind.replace('_', '.')}": content for kind, content in others.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, files)


def test_shards_are_one_data_set_with_labels(tmp_path, recwarn):
    shard(tmp_path / "faces" / "faces-train-000001.tar", 3, 2)
    shard(tmp_path / "faces" / "faces-train-000000.tar", 0, 3)
    shard(tmp_path / "faces" / "faces-test-000000.tar", 7, 2)
    found = read(tmp_path / "faces")
    assert (values(found), found.labels.tolist(), found.classes) == ([0, 1, 2, 3, 4], [0, 1, 0, 1, 0], ("0", "1"))
    assert values(read(tmp_path / "faces", split="test")) == [7, 8]
    alone = read(tmp_path / "faces" / "faces-train-000000.tar")
    assert (alone.name, alone.labels.tolist()) == ("faces-train-000000", [0, 1, 0])
    assert not recwarn


def test_compressed_shards_are_read(tmp_path):
    shard(tmp_path / "packed" / "a-000.tgz", 0, 2)
    shard(tmp_path / "packed" / "a-001.tgz", 2, 2)
    assert values(read(tmp_path / "packed")) == [0, 1, 2, 3]


def test_of_several_images_in_a_sample_that_of_its_name_is_taken(tmp_path):
    with pytest.warns(DataWarning, match="of the images in a sample, 'image', 'mask', 'image' is taken"):
        assert values(read(shard(tmp_path / "masks.tar", 5, 2, mask_png=grey(200)))) == [5, 6]
    files = {"0.before.png": grey(1), "0.after.png": grey(2), "0.txt": b""}
    refused("several images .'after', 'before'.", write(tmp_path / "pairs.tar", files))
    refused("'0' has two images", write(tmp_path / "twice.tar", {"0.png": grey(1), "0.jpg": grey(1), "0.txt": b""}))


def test_damaged_shards(tmp_path):
    files = {"0.png": grey(1), "0.cls": b"cat"}
    refused("0.cls: got b'cat', wanted a class in digits", write(tmp_path / "words.tar", files))
    files = {"0.png": grey(1), "0.cls": b"1", "1.png": grey(2), "2.png": b"", "2.cls": b"0", "3.json": b""}
    refused("1 of 2 images have none", write(tmp_path / "part.tar", files))
    files.pop("1.png")
    with pytest.warns(DataWarning, match="2 of 3 files skipped: part.tar/3 .no image., part.tar/2.png"):
        assert values(read(write(tmp_path / "part.tar", files))) == [1]
    (tmp_path / "more").mkdir()
    content = shard(tmp_path / "whole.tar", 0, 9).read_bytes()
    (tmp_path / "more" / "a.tar").write_bytes(content[: len(content) // 2])
    refused("a.tar is truncated or damaged", tmp_path / "more")


def test_folders_in_a_tar_with_annotations_stay_classes_and_splits(tmp_path):
    places = {"train/cat": 1, "train/dog": 2, "test/dog": 3}
    files = {
        f"{place}/0.{kind}": b"" if kind == "txt" else grey(i) for place, i in places.items() for kind in ("png", "txt")
    }
    path = write(tmp_path / "x.tar", files)
    with pytest.warns(DataWarning, match="3 of 5 files skipped"):
        found = read(path)
    assert (values(found), found.classes) == ([1, 2], ("cat", "dog"))
    keyed = write(
        tmp_path / "y.tar",
        {f"n01/{i}.{kind}": grey(7) if kind == "png" else b"1" for i in "01" for kind in ("png", "cls")},
    )
    assert read(keyed).labels.tolist() == [1, 1]


def test_archives_beside_images_are_not_read(tmp_path):
    folder = write(tmp_path / "mixed", {"b.png": grey(1)})
    shard(folder / "a.tar", 5, 2)
    parquet(folder / "a.parquet", [grey(7)])
    with pytest.warns(DataWarning, match="2 of 3 files skipped"):
        assert values(read(folder)) == [1]
