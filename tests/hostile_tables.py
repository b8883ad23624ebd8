"""Hostile Parquet and Arrow files, and shards: see `hostile_files.py`."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.damage import flipped
from tests.data.builders import write
from tests.forks import forked
from tests.hostile_files import _damaged, _good, _hostile, _special


def _table_kind(kind: str) -> Callable:
    """Registers what makes a folder by pyarrow, in a fork: a process in which that has worked cannot be forked."""

    def register(make: Callable[[Any, Any, Path, random.Random], None]) -> Callable:
        def work(folder: Path, seed: float) -> None:
            import pyarrow as pa
            import pyarrow.parquet as pq

            make(pa, pq, folder, random.Random(seed))

        def apart(folder: Path, r: random.Random) -> Path:
            _, status = os.waitpid(forked(work, Path(os.devnull), folder, r.random()), 0)
            assert status == 0, kind
            return folder

        return _hostile(kind)(apart)

    return register


def _table(pa: Any, r: random.Random, count: int | None = None) -> Any:
    rows = [{"bytes": _good(r), "path": None} for _ in range(count or r.randint(1, 60))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), "label": [i % 3 for i in range(len(rows))]})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _saved(pa: Any, folder: Path, table: Any) -> None:
    with pa.OSFile(str(folder / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


@_table_kind("table-damaged")
def _(pa: Any, pq: Any, folder: Path, r: random.Random) -> None:
    if r.random() < 0.5:
        _saved(pa, folder, _table(pa, r))
    else:
        pq.write_table(_table(pa, r), folder / "data.parquet")
    (file,) = folder.glob("data.*")
    content = file.read_bytes()
    # What describes the rest is at the start of Arrow's files, and at the end of Parquet's.
    head, tail = flipped(content, r, 0, min(2500, len(content))), flipped(content, r, max(0, len(content) - 1500))
    file.write_bytes(r.choice([head, tail, _damaged(content, r)]))


@_table_kind("table-bomb")
def _(pa: Any, pq: Any, folder: Path, r: random.Random) -> None:
    rows = r.choice([lambda: [bytes(1 << 29)], lambda: [_good(r)] * 200_000, lambda: [bytes(100 << 20)] * 6])()
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), folder / "data.parquet", compression="zstd")


@_table_kind("table-content")
def _(pa: Any, pq: Any, folder: Path, r: random.Random) -> None:
    names = r.choice([["\n\x1b[31m"], ["a", "b"], [], ["image", "image"], ["x" * 10_000]])
    columns = [pa.array([r.choice([_good(r), b"", None, b"no image"])], pa.binary()) for _ in names]
    said = r.choice(["[" * 9999, "{}", '{"info": {"features": {"image": 3}}}', '{"info": {"features": {"\\n": null}}}'])
    table = pa.Table.from_arrays(columns, names).replace_schema_metadata({"huggingface": said})
    pq.write_table(table, folder / "data.parquet")


@_table_kind("table-descriptions")
def _(pa: Any, pq: Any, folder: Path, r: random.Random) -> None:
    _saved(pa, folder, _table(pa, r, 2))
    name = r.choice(["../../etc/passwd", "/dev/zero", "data.arrow\0", "", "..", 3, None, "state.json", ".", "nothing"])
    contents = [json.dumps({"_data_files": [{"filename": name}]}), "{}", "[]", "[" * 99999, '{"_data_files": [3]}', ""]
    if r.random() < 0.3:
        (folder / "state.json").unlink()
        _special(folder / "state.json", r)
    else:
        (folder / "state.json").write_text(r.choice(contents))
    if r.random() < 0.5:
        (folder / "dataset_dict.json").write_text(r.choice(['{"splits": ["train"]}', '{"splits": [[]]}', *contents]))


@_hostile("shards-damaged")
def _(folder: Path, r: random.Random) -> Path:
    contents = [b"1", b"", b"-1", b"9" * 5000, b"\xff", bytes(200 << 20), b"one"]
    files = {f"{i}.{kind}": _good(r) if kind == "png" else b"0" for i in range(3) for kind in ("png", "cls")}
    files["1.cls"] = r.choice(contents)
    path = write(folder / r.choice(["x.tar", "x.tgz"]), files)
    if r.random() < 0.6:
        path.write_bytes(_damaged(path.read_bytes(), r))
    return r.choice([folder, path])
