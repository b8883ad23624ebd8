"""Reads an LMDB for `gnfast.data.databases`, as a process of its own: a damaged page may kill whoever touches it.

    python -P lmdb_reader.py FOLDER START STOP LIMIT

It writes to its standard output, by `marshal`: how many images there are at the positions from START to STOP; then, of
each, key, label or None, and bytes, or why there are none as text. Text in place of that says what is wrong.
"""

import marshal
import os
import sys
from collections.abc import Iterator
from itertools import islice

# ImageNet's full version has 21,841.
_CLASSES = 100_000


def images(folder: str, positions: slice, limit: int) -> Iterator[object]:
    import lmdb

    with lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False, create=False) as environment:
        # A file that was cut off opens like a whole one.
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        size = os.stat(os.path.join(folder, "data.mdb")).st_size
        if size < needed:
            raise ValueError(f"it is truncated: data.mdb has {size} bytes, and {needed} are in use")
        with environment.begin(buffers=True) as transaction:
            entries = transaction.stat()["entries"]
            # Each takes more than these 8 bytes.
            if entries > size // 8:
                raise ValueError(f"it claims {entries} entries in {size} bytes")
            is_labelled = None not in (transaction.get(b"d0"), transaction.get(b"l0"))
            numbers = range(entries // 2 if is_labelled else entries)
            chosen = numbers[positions]
            yield len(chosen)
            if is_labelled or transaction.get(b"0") is not None:
                rows = _numbered(folder, transaction, chosen, len(numbers), is_labelled)
            else:
                found = islice(transaction.cursor(), chosen.start, chosen.stop)
                rows = ((bytes(key).decode(errors="backslashreplace"), None, value) for key, value in found)
            missing = len(chosen)
            for key, label, value in rows:
                yield key, label, f"larger than {limit >> 20} MiB" if len(value) > limit else bytes(value)
                missing -= 1
            if missing:
                raise LookupError(f"{folder} is damaged: it ends before the last {missing} of its entries")


def _numbered(folder: str, transaction, chosen: range, count: int, is_labelled: bool) -> Iterator[tuple]:
    def get(key: str) -> memoryview:
        value = transaction.get(key.encode())
        if value is None:
            raise LookupError(f"{folder}: key {key!r} is missing, although there are {count} images")
        return value

    for number in chosen:
        label = None
        if is_labelled:
            digits = bytes(get(f"l{number}")[:21])
            if not digits.isdigit() or len(digits) > 20 or int(digits) >= _CLASSES:
                wanted = f"a class in digits, below {_CLASSES}"
                raise LookupError(f"{folder}: key 'l{number}': got {digits[:20]!r}, wanted {wanted}")
            label = int(digits)
        key = f"d{number}" if is_labelled else f"{number}"
        yield key, label, get(key)


def main(folder: str, start: str, stop: str, limit: str) -> None:
    with sys.stdout.buffer as out:
        try:
            for row in images(folder, slice(int(start), int(stop)), int(limit)):
                marshal.dump(row, out)
        except LookupError as error:
            marshal.dump(str(error), out)
        except Exception as error:
            marshal.dump(f"{folder} cannot be read as an LMDB: {error}", out)


if __name__ == "__main__":
    main(*sys.argv[1:])
