"""Training from Python: settings as keywords, and data sets that are objects."""

import dataclasses
import functools
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import Dataset, IterableDataset, Subset

import gnfast
from gnfast.cli import main
from gnfast.config.config import as_json
from gnfast.data import DataError, DataWarning, Request, cache
from gnfast.data import load as load_data
from gnfast.data.objects import open_object
from gnfast.errors import InputError
from gnfast.runs import checkpoint
from gnfast.runs.record import read_run
from gnfast.train import PRESETS, Config, RunError, train
from tests.cli.commands import fails
from tests.processes import START
from tests.tiny_runs import equal, tiny
from tests.train.test_train_parallel import free_port

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
SETTINGS = {"width": 0.1, "z_dim": 5, "batch_d": 7, "batch_g": 6, "tensorboard": False, "device": "cpu", "n_samples": 4}
SETTINGS |= {"extractor": "none"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path / "cache"))


class Stream(IterableDataset):
    """What is read from its start to its end."""

    def __iter__(self):
        return iter(pixels())


class Items(Dataset):
    """A data set of these items."""

    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        return item() if callable(item) else item


def pixels(count=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def run(dataset, folder, steps, **changes):
    how = {"resolution": 8, **SETTINGS, **changes}
    return train("digits", dataset=dataset, steps=steps, run_dir=folder, progress=False, echo=lambda _: None, **how)


def newest(folder):
    return checkpoint.load_newest(folder / "checkpoints")["state"]


def prepared(dataset, tmp_path, **asked):
    return cache.prepared(open_object(dataset, Request(**asked, progress=False), tmp_path))


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(import numpy.*?)```", DOCS.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    exec(compile(code, "training.md", "exec"), names)
    assert "500 images of Discs" in capsys.readouterr().out
    assert names["images"].shape == (16, 1, 16, 16) and names["images"].abs().max() <= 1
    assert names["run"].metrics["step"] == 20 and "loss_real" in names["run"].metrics


def test_an_object_trains_as_the_same_images_in_a_folder(tmp_path):
    images = pixels()
    for index, image in enumerate(images):
        (tmp_path / "files").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "files" / f"{index:02d}.png")
    run(Items([Image.fromarray(image) for image in images]), tmp_path / "object", 4)
    run(None, tmp_path / "folder", 4, data=tmp_path / "files" / ".." / "files")
    assert equal(newest(tmp_path / "object"), newest(tmp_path / "folder"))
    assert read_run(tmp_path / "object").settings["data"] == ""
    assert read_run(tmp_path / "folder").settings["data"] == str(tmp_path / "files")


def test_a_run_on_an_object_continues_on_the_same_images_alone(tmp_path, monkeypatch):
    # Even these go through the cache, where the next call must not find those of the last.
    monkeypatch.setattr(cache, "_SMALL_BYTES", 0)
    images, folder = pixels(), tmp_path / "run"
    run(Items(list(images)), tmp_path / "whole", 6)
    run(Items(list(images)), folder, 3)
    outcome = run(Items(list(images)), folder, 6)
    assert (outcome.step, outcome.trained) == (6, 3)
    assert equal(newest(folder), newest(tmp_path / "whole"))
    (entry,) = [entry for entry in cache.entries() if entry.header["source"]["for"] == str(folder)]
    assert entry.header["shape"] == [20, 1, 8, 8]
    images[13, 3, 3] ^= 1
    with pytest.raises(RunError, match="was trained on other images than dataset holds now"):
        run(Items(list(images)), folder, 9)


def test_warnings_are_of_the_line_that_calls(tmp_path):
    items = Items([lambda: Image.open(io.BytesIO(b"broken")), *pixels(), *pixels()])
    with pytest.warns(UserWarning, match="has no effect|skipped") as said:
        run(items, tmp_path / "run", 1, k_gp=2.0)
    assert {warning.category for warning in said} == {DataWarning, UserWarning}
    assert {warning.filename for warning in said} == {__file__}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 9}, "--resolution: small takes multiples of 4"),
        ({"extractor": "nowhere:f"}, "extractor: nowhere:f cannot be imported"),
        ({"extractor": "inception", "extractor_weights": "nowhere.pt"}, "weights: got .*nowhere.pt"),
        ({"lr_d": 1.0}, "was started with other settings"),
    ],
)
def test_settings_are_checked_before_images_are_read(tmp_path, changes, message):
    def read():
        raise AssertionError("read")

    (tmp_path / "run").mkdir()
    known = PRESETS["digits"].config
    started = {"preset": "digits", "config": as_json(dataclasses.replace(known, resolution=8, data="", **SETTINGS))}
    (tmp_path / "run" / "config.json").write_text(json.dumps(started))
    with pytest.raises((ValueError, RunError), match=message):
        run(Items([read]), tmp_path / "run", known.steps, **changes)


def test_commands_on_such_a_run_ask_for_the_images(tmp_path, capsys):
    folder = run(Items(list(pixels())), tmp_path / "run", 2).run_dir
    assert main(["sample", str(folder), "--n=4", "--device=cpu"]) == 0
    assert "--data or --reference: got neither" in fails(capsys, "eval", str(folder), "--device=cpu")
    assert "--data: got none, wanted where" in fails(capsys, "analyze", str(folder), "--device=cpu")


def test_a_generator_is_the_moving_average_or_the_raw_one(tmp_path):
    outcome = run(Items(list(pixels())), tmp_path / "run", 3, ema_decay=0.9)
    state = newest(tmp_path / "run")
    assert equal(dict(outcome.generator().state_dict()), dict(state["ema"]))
    assert equal(dict(outcome.generator(weights="raw").state_dict()), dict(state["generator"]))
    with pytest.raises(RunError, match="no best checkpoint"):
        outcome.generator(best=True)


def test_all_kinds_of_images_are_the_same_pixels(tmp_path):
    colour = np.random.default_rng(1).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in colour]
    kinds = {
        "array": list(colour),
        "PIL": [Image.fromarray(image) for image in colour],
        "uint8": tensors,
        "float": [tensor / 255 for tensor in tensors],
        "half": [(tensor / 255).to(torch.float16) for tensor in tensors],
        "tuple": [(tensor,) for tensor in tensors],
        "mapping": [{"img": Image.fromarray(image), "caption": "x"} for image in colour],
    }
    for kind, items in kinds.items():
        found = prepared(Items(items), tmp_path, resolution=4)
        assert torch.equal(found.images, prepared(Items(kinds["array"]), tmp_path, resolution=4).images), kind
        assert found.labels is None
    grey = pixels(3)
    for items in (list(grey), list(torch.from_numpy(grey)), list(torch.from_numpy(grey)[:, None])):
        assert torch.equal(prepared(Items(items), tmp_path).images[:, 0], torch.from_numpy(grey))
    digits = load_data("digits", resolution=8, progress=False)
    again = prepared(Subset(digits, range(1797)), tmp_path)
    assert again.fingerprint == digits.fingerprint


def test_labels_and_their_names(tmp_path):
    images = pixels(3)
    named = Items([(image, i) for i, image in enumerate(images)], classes=["a", "b", "c", "d"])
    assert prepared(named, tmp_path).classes == ("a", "b", "c", "d")
    part = prepared(Subset(named, [2, 0]), tmp_path)
    assert (part.labels.tolist(), part.classes) == ([2, 0], ("a", "b", "c", "d"))
    mapped = Items([{"image": image, "label": np.int64(2)} for image in images])
    assert prepared(mapped, tmp_path).classes == ("0", "1", "2")
    assert prepared(Items([(image, -1) for image in images]), tmp_path).labels is None
    assert prepared(Items([(image, {"boxes": []}) for image in images]), tmp_path).labels is None
    with pytest.raises(DataError, match="1 of 3 images have none"):
        prepared(Items([(image, [0, 1, -1][i]) for i, image in enumerate(images)]), tmp_path)
    with pytest.raises(ValueError, match="--classes: got 3, but Items has 4 classes"):
        run(named, tmp_path / "run", 1, model="biggan", classes=3, resolution=32)


def broken():
    raise KeyError("gone")


def not_there():
    return Image.open("nowhere.png")


def refusing():
    raise OSError("the server said no")


REFUSED = {
    "dataset: got Stream, wanted one with len": Stream(),
    "dataset: got set, wanted one with len": {1, 2},
    "dataset: got Items without images": Items([]),
    r"dataset\[1\]: KeyError: 'gone'": Items([pixels()[0], broken]),
    r"dataset\[1\]: FileNotFoundError: .*nowhere.png": Items([pixels()[0], not_there]),
    r"dataset\[1\]: OSError: the server said no": Items([pixels()[0], refusing]),
    r"dataset\[1\]: ValueError: invalid literal": Items([pixels()[0], lambda: int("x")]),
    r"dataset\[0\]: got another image the second time: leave out": Items([lambda: pick()]),
    r"dataset\[0\]: got values from -1 to 1, wanted 0 to 1": Items([torch.linspace(-1, 1, 12).view(3, 2, 2)]),
    r"dataset\[0\]: got values from nan to nan": Items([torch.full((3, 2, 2), torch.nan)]),
    r"dataset\[0\]: got int64 of shape \(2, 2, 3\)": Items([torch.zeros(3, 2, 2, dtype=torch.int64)]),
    r"dataset\[0\]: got uint8 of shape \(2, 2, 4\)": Items([torch.zeros(4, 2, 2, dtype=torch.uint8)]),
    r"dataset\[0\]: got str, wanted a PIL image": Items(["0.png"]),
    r"dataset\[0\]: got dict, wanted a PIL image": Items([{"pixels": 3}]),
    r"dataset\[0\]: got an image of 16 bits": Items([Image.new("I;16", (2, 2))]),
    r"dataset: no image is left of Items: dataset\[0\] \(pixels of mode F": Items([Image.new("F", (2, 2))]),
    r"dataset\[0\]: got the label -7": Items([(pixels()[0], -7)]),
    r"dataset\[1\]: got an image of another size": Items([pixels()[0], pixels()[0][:4]]),
}


def pick():
    return np.random.default_rng().integers(0, 256, (8, 8), dtype=np.uint8)


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_no_data_set_of_images_is_refused(message, tmp_path):
    with pytest.raises(DataError, match=message):
        prepared(REFUSED[message], tmp_path)


@pytest.mark.parametrize("decodes", ["in the data set", "later"])
def test_damaged_images_are_left_out_as_of_a_folder(tmp_path, decodes):
    """With one warning that counts them, and the labels of the others in their places."""
    files = tmp_path / "files"
    for index, image in enumerate(pixels(12)):
        path = files / "ab"[index % 2] / f"{index // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (files / "a" / "1.png").write_text("not an image")
    whole = (files / "b" / "0.png").read_bytes()
    (files / "b" / "0.png").write_bytes(whole[: len(whole) // 2])
    paths = sorted(files.glob("*/*"))

    def read(path):
        image = Image.open(path)
        return (image.copy() if decodes == "in the data set" else image), "ab".index(path.parent.name)

    items = Items([functools.partial(read, path) for path in paths], classes=["a", "b"])
    with pytest.warns(
        DataWarning,
        match=r"2 of 12 files skipped: dataset\[1\] \(not an image, or damaged\), dataset\[6\] \(unreadable",
    ) as said:
        found = prepared(items, tmp_path)
    with pytest.warns(DataWarning, match="2 of 12 files skipped: a/1.png"):
        expected = load_data(str(files), progress=False)
    assert [warning.category for warning in said].count(DataWarning) == 1
    assert found.skipped == 2 and len(found) == 10
    assert found.fingerprint == expected.fingerprint and torch.equal(found.labels, expected.labels)


def test_settings_are_those_of_the_command(tmp_path):
    config = tiny(tmp_path / "run", steps=2, extractor="none")
    outcome = train(config, width=0.2, progress=False, echo=lambda _: None)
    record = read_run(outcome.run_dir)
    assert record.preset == "custom" and record.config == dataclasses.replace(config, width=0.2)
    train("digits", betas=[0.5, 0.9], run_dir=tmp_path / "preset", **SETTINGS, steps=1, progress=False)
    wanted = dataclasses.replace(PRESETS["digits"].config, **SETTINGS, betas=(0.5, 0.9), steps=1)
    assert read_run(tmp_path / "preset").config == dataclasses.replace(wanted, run_dir=str(tmp_path / "preset"))


def test_wrong_settings_name_the_right_ones(tmp_path):
    items = Items(list(pixels()))
    for message, error, arguments, settings in (
        ("unknown preset 'digts'; did you mean 'digits'", InputError, ["digts"], {}),
        ("unknown setting 'stpes'; did you mean 'steps'", InputError, ["digits"], {"stpes": 3}),
        ("--steps: got 0, wanted a whole number", ValueError, ["digits"], {"steps": 0}),
        (r"^data: got '\.\./digts', which does not exist", ValueError, ["digits"], {"data": "../digts"}),
        (r"dataset: got '\.\./digits', .*data='\.\./digits'", ValueError, ["digits"], {"dataset": "../digits"}),
        (
            "data: got 'cifar10', wanted none with dataset",
            InputError,
            ["digits"],
            {"data": "cifar10", "dataset": items},
        ),
        ("eval_split: got 'test', wanted none", InputError, ["digits"], {"eval_split": "test", "dataset": items}),
        (
            "data: got '', wanted a path or one of",
            ValueError,
            [Config(data="", resolution=8, run_dir=str(tmp_path / "run"))],
            {},
        ),
    ):
        for call in (train, gnfast.train):
            with pytest.raises(error, match=message):
                call(*arguments, **settings)
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="--k-gp has no effect without --penalty 1-gp"):
        train("digits", k_gp=2.0, run_dir=tmp_path / "run", **SETTINGS, steps=1, progress=False)


def _of_rank(rank, port, folder, seeds):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GNFAST_CACHE"] = str(folder.parent / "cache")
    said = ""
    try:
        run(Items(list(pixels(seed=seeds[rank]))), folder, 2, batch_d=8)
    except RuntimeError as error:
        said = str(error)
    Path(f"{folder}-{rank}.txt").write_text(said)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_processes_share_a_run_on_an_object(tmp_path, seeds):
    start_processes(_of_rank, args=(free_port(), tmp_path / "run", seeds), nprocs=2, start_method=START)
    said = [(tmp_path / f"run-{rank}.txt").read_text() for rank in (0, 1)]
    if seeds == (0, 0):
        assert said == ["", ""] and newest(tmp_path / "run")["step"] == 2
    else:
        assert all("dataset: the processes of the run have different ones" in line for line in said)
