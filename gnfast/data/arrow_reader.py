"""Reads Arrow and Parquet files for `gnfast.data.tables`, as a process of its own: damage may kill whoever reads them.

    python -P arrow_reader.py FOLDER LIMIT FILE …

It writes to its standard output, by `marshal`: how many rows there are, the names of their classes or None, and what
the user should know; then, of each row, its number, label or None, and the image's bytes, or why there are none as
text. Text in place of that says what is wrong.
"""

import contextlib
import json
import marshal
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

# Parquet's pages are unpacked a few rows at a time, so that large images do not add up.
_ROWS = 16
_MEMORY = 3 << 28
# ImageNet's full version has 21,841.
_CLASSES = 100_000


class RefusalError(Exception):
    """What is wrong, in words that name the place."""


class Columns(NamedTuple):
    """What is read of a file: the column of images, that of labels or "", and the names of classes if it has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None
    warning: str


class File:
    """An Arrow stream or a Parquet file."""

    def __init__(self, folder: str, name: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = os.path.join(folder, name)
        with open(self.path, "rb") as file:
            self.parquet = pq.ParquetFile(pa.memory_map(self.path)) if file.read(4) == b"PAR1" else None
        schema = self.parquet.schema_arrow if self.parquet else self._stream().schema
        self.columns = _columns(self.path, schema)

    def _stream(self) -> Any:
        import pyarrow as pa

        return pa.ipc.open_stream(pa.memory_map(self.path))

    def count(self) -> int:
        if self.parquet:
            return self.parquet.metadata.num_rows
        return sum(len(image) for image, _ in self.batches())

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Images and labels (or None), some rows at a time, whose offsets were checked."""
        names = [name for name in self.columns[:2] if name]
        pages = self.parquet and self.parquet.iter_batches(_ROWS, columns=names, use_threads=False)
        for batch in pages or self._stream():
            columns = [batch.column(name) for name in names]
            for column in columns:
                column.validate(full=True)
            yield columns[0], columns[1] if len(columns) > 1 else None


def _columns(path: str, schema: Any) -> Columns:
    """Which columns hold images and labels, by what `datasets` says of them or else by their types."""
    import pyarrow as pa

    said = _features((schema.metadata or {}).get(b"huggingface", b""))
    images = [name for name in schema.names if said.get(name, {}).get("_type") == "Image"]
    images = images or [field.name for field in schema if _holds_bytes(pa, field.type)]
    several = len(images) > 1
    if not images:
        names = ", ".join(map(repr, schema.names[:20])) or "none"
        raise RefusalError(f"{path}: no column holds images; the columns are {names}")
    # `image` beside `mask` is what is meant; two others are a question.
    chosen = next((name for name in ("image", "img") if name in images), None) if several else images[0]
    listed = ", ".join(map(repr, images[:20]))
    if chosen is None:
        raise RefusalError(f"{path}: the columns {listed} hold images: keep one (`select_columns`), or call it 'image'")
    warnings = [f"of the columns with images, {listed}, {chosen!r} is taken"] if several else []
    labels = [name for name in schema.names if said.get(name, {}).get("_type") == "ClassLabel"]
    if len(labels) > 1:
        warnings.append(f"{', '.join(map(repr, labels[:20]))} all hold classes, so that none is taken: keep one")
    if len(labels) == 1:
        names = said[labels[0]].get("names")
        is_list = (
            isinstance(names, list) and 0 < len(names) <= _CLASSES and all(isinstance(name, str) for name in names)
        )
        return Columns(chosen, labels[0], tuple(names) if is_list else None, "; ".join(warnings))
    plain = not labels and "label" in schema.names and pa.types.is_integer(schema.field("label").type)
    return Columns(chosen, "label" if plain else "", None, "; ".join(warnings))


def _features(metadata: bytes) -> dict[str, dict]:
    """What `datasets` wrote about the columns; nothing where others wrote the file."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found = json.loads(metadata)["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    return {}


def _holds_bytes(pa: Any, kind: Any) -> bool:
    """Whether a type is that of encoded images: binary, or a struct with binary `bytes`."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return (
            index >= 0 and _holds_bytes(pa, kind.field(index).type) and not pa.types.is_struct(kind.field(index).type)
        )
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def rows(folder: str, limit: int, names: list[str]) -> Iterator[object]:
    files = [File(folder, name) for name in names]
    columns = files[0].columns
    for file in files:
        if file.columns[:3] != columns[:3]:
            raise RefusalError(f"{file.path}: its columns of images and labels, or its classes, are not {names[0]}'s")
    total = sum(file.count() for file in files)
    # Each image takes more than a byte: more rows were made to fill a disk.
    if total > sum(os.stat(file.path).st_size for file in files):
        raise RefusalError(f"{folder} claims {total} rows in fewer bytes")
    yield total, columns.classes, columns.warning
    number = 0
    for file in files:
        for images, labels in file.batches():
            for index, cell in enumerate(images):
                label = None if labels is None else labels[index].as_py()
                yield f"row {number}", _label(f"{folder}: row {number}", label), _content(cell.as_py(), limit)
                number += 1


def _label(place: str, label: Any) -> int | None:
    # -1 is what `datasets` has where a label is kept secret.
    if label in (None, -1):
        return None
    if not isinstance(label, int) or not 0 <= label < _CLASSES:
        raise RefusalError(f"{place}: got the label {label!r}, wanted a class from 0 to {_CLASSES - 1}")
    return label


def _content(cell: Any, limit: int) -> bytes | str:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None:
        path = cell.get("path") if isinstance(cell, dict) else None
        return "a path without the image's bytes: `save_to_disk` writes them too" if path else "empty"
    return f"larger than {limit >> 20} MiB" if len(content) > limit else content


def main(folder: str, limit: str, *names: str) -> None:
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    with sys.stdout.buffer as out:
        try:
            import pyarrow as pa

            pa.set_cpu_count(1)
            # What a file claims to unpack to is not taken on trust.
            with contextlib.suppress(ValueError):
                resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
            for row in rows(folder, int(limit), list(names)):
                marshal.dump(row, out)
        except RefusalError as error:
            marshal.dump(str(error), out)
        except BaseException as error:
            marshal.dump(f"{folder} cannot be read as Arrow or Parquet: {error or type(error).__name__}", out)


if __name__ == "__main__":
    main(*sys.argv[1:])
