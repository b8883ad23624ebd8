"""Reads an LMDB for `gnfast.data.databases`, as a process of its own: a damaged page may kill whoever touches it.

    python -P lmdb_reader.py FOLDER LIMIT

It reads requests from its standard input, each a length (uint32) and a key, and writes answers, each a status (uint8),
a length (uint64) and as many bytes. The first answer, unasked, is the number of entries in digits. A request without a
key asks for the next entry, which is two answers, key and value.
"""

import os
import struct
import sys

REQUEST = struct.Struct("<I")
ANSWER = struct.Struct("<BQ")
FOUND, MISSING, TOO_LARGE, FAILED = range(4)
"""The bytes of an answer are: the value; none, as there is no such key or no next entry; none, as there are more than
LIMIT; a message."""


def serve(folder: str, limit: int, requests, answers) -> None:
    import lmdb

    def answer(status: int, content=b"") -> None:
        if len(content) > limit:
            status, content = TOO_LARGE, b""
        # Copied before anything is said, so that a page that is not there leaves no half answer.
        content = bytes(content)
        answers.write(ANSWER.pack(status, len(content)))
        answers.write(content)

    try:
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
                answer(FOUND, str(entries).encode())
                cursor = transaction.cursor()
                while True:
                    answers.flush()
                    head = requests.read(REQUEST.size)
                    if len(head) < REQUEST.size:
                        return
                    key = requests.read(*REQUEST.unpack(head))
                    if key:
                        value = transaction.get(key)
                        answer(MISSING if value is None else FOUND, b"" if value is None else value)
                    elif cursor.next():
                        answer(FOUND, cursor.key())
                        answer(FOUND, cursor.value())
                    else:
                        answer(MISSING)
    except (lmdb.Error, ValueError, OSError) as error:
        answer(FAILED, str(error).encode("utf-8", "backslashreplace"))
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer)
