"""Hostile inputs: files that are damaged, lying, too large or malicious, and what a command may do when it meets one.

`python -m tests.hostile_files [KIND …]` tries one file of each kind. The other `tests/hostile_*.py` add kinds to
`HOSTILE` when they are imported.
"""

import bz2
import functools
import gzip
import importlib
import io
import json
import lzma
import math
import os
import pickle
import pkgutil
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tests.damage import CONTENT, cut, flipped
from tests.data.builders import database
from tests.forks import fork
from tests.processes import run_python

CANARY = "code-was-run"
"""A file of this name in the folder that `make` was given, or in the working directory, shows that code was run."""

SECONDS = 60
BYTES = 1 << 30


@dataclass(frozen=True)
class Hostile:
    """One way of being hostile.

    Args:
        kind: what is wrong with it, in a few words, without spaces: "png-truncated".
        make: (an empty folder, a generator) -> the path, inside the folder, of what was made there. What is drawn makes
            each file another one; the same generator makes the same file.
        command: that path -> the words after `gnfast` that are run on it, within the folder.
    """

    kind: str
    make: Callable[[Path, random.Random], Path]
    command: Callable[[Path], list[str]]


@dataclass
class Outcome:
    """What a command did with a hostile file.

    Args:
        kind, seed: which file it was.
        status: the exit status; negative is the signal that ended it.
        seconds, peak: time, and the most memory (bytes) that the process or one of its children took.
        output: what it printed, both streams.
        faults: what it must not have done; empty if all is well.
    """

    kind: str
    seed: int
    status: int
    seconds: float
    peak: int
    output: str
    faults: list[str] = field(default_factory=list)


HOSTILE: list[Hostile] = []


def attack(hostile: Hostile, seed: int, seconds: float = SECONDS, limit: int = BYTES) -> Outcome:
    """Make the file that `seed` gives, run the command on it in a fork of this process, and say what it did.

    This process should have called `every`, and started no threads.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"hostile-{hostile.kind}-")).resolve()
    try:
        inside = folder / "made"
        inside.mkdir()
        path = hostile.make(inside, random.Random(f"{hostile.kind} {seed}"))
        words = hostile.command(path)
        start = time.monotonic()
        status, peak = _forked(words, folder, seconds)
        took = time.monotonic() - start
        output = (folder / "output").read_text(encoding="utf-8", errors="replace")
        outcome = Outcome(hostile.kind, seed, status, took, peak, output)
        if status < 0:
            late = took >= seconds
            name = signal.Signals(-status).name
            outcome.faults.append(f"did not end within {seconds:g} s" if late else f"was ended by {name}")
        if "Traceback (most recent call last)" in output:
            outcome.faults.append("printed a traceback")
        if peak > limit:
            outcome.faults.append(f"took {peak / 2**20:.0f} MiB of memory")
        if any(folder.rglob(CANARY)):
            outcome.faults.append("ran code from the file")
        return outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _forked(words: list[str], folder: Path, seconds: float) -> tuple[int, int]:
    """Exit status (negative for a signal) and peak memory of `gnfast` with `words`; its output goes to a file."""
    # A child has what this process has, and none of that is the command's doing.
    had = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    child = fork()
    if not child:
        _run(words, folder)
    end = time.monotonic() + seconds
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), max(usage.ru_maxrss * 1024 - had, 0)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.005)


def _run(words: list[str], folder: Path) -> None:
    """The child's part; it does not return."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder / "made")
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.environ |= {"HOME": str(folder / "home"), "GNFAST_CACHE": str(folder / "cache")}
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # So that a bomb that goes off does not take the machine with it.
        resource.setrlimit(resource.RLIMIT_DATA, (4 * BYTES, 4 * BYTES))
        from gnfast.cli import main

        status = main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def every() -> list[Hostile]:
    """All kinds. What commands import when they run is imported as well, once for all forks."""
    import gnfast.cli
    import gnfast.train

    for path in sorted(Path(__file__).parent.glob("hostile_*.py")):
        importlib.import_module(f"tests.{path.stem}")
    for package in (gnfast.cli, gnfast.train):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    Image.init()
    return HOSTILE


def outcomes(*kinds: str) -> dict[str, Outcome]:
    """By kind, what the command did with one file of each: in a process of its own, where no thread hinders a fork."""
    root = Path(__file__).parents[1]
    result = run_python("-m", "tests.hostile_files", *kinds, cwd=root, OMP_NUM_THREADS="1")
    assert not result.stderr, result.stderr
    return {outcome.kind: outcome for outcome in (Outcome(**json.loads(line)) for line in result.stdout.splitlines())}


class Code:
    """Pickled, a call of a function with arguments."""

    def __init__(self, function: Callable, *arguments: object, state: object = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.call


TOUCH = Code(os.system, f"touch {CANARY}")


def _hostile(kind: str, *words: str) -> Callable:
    """Registers what makes such a file; `words` of the command have {} where the path goes."""

    def register(make: Callable[[Path, random.Random], Path]) -> Callable:
        HOSTILE.append(Hostile(kind, make, lambda path: [word.format(path) for word in words or _PREPARE]))
        return make

    return register


_PREPARE = ("data", "prepare", "{}")


# Images


_ALL = ("RGB", "L", "RGBA", "P", "1", "LA")
_MODES = {"PNG": _ALL, "GIF": _ALL, "TIFF": _ALL, "BMP": _ALL[:-1], "JPEG": ("RGB", "L"), "PPM": ("RGB", "L")}
_MODES |= {"WEBP": ("RGB", "RGBA"), "AVIF": ("RGB", "RGBA")}


def _image(r: random.Random, size: tuple[int, int] | None = None, kind: str = "") -> tuple[bytes, str]:
    """An image file and its suffix."""
    width, height = size or (r.randint(1, 40), r.randint(1, 40))
    kind = kind or r.choice(list(_MODES))
    out = io.BytesIO()
    image = Image.frombytes("RGB", (width, height), r.randbytes(3 * width * height))
    image.convert(r.choice(_MODES[kind])).save(out, kind)
    return out.getvalue(), f".{kind.lower()}"


def _good(r: random.Random) -> bytes:
    return _image(r, (8, 8), "PNG")[0]


def _damaged(content: bytes, r: random.Random) -> bytes:
    """Cut, with bits flipped, with a piece overwritten, left out or repeated."""
    kinds = ("truncated", "flipped", "overwritten", "cut-out", "repeated", "filled")
    return CONTENT[r.choice(kinds)](content, r)


def _pictures(folder: Path, files: dict[str, bytes], r: random.Random) -> Path:
    """A folder with these files and, sometimes, a good image."""
    if r.random() < 0.5:
        files = {"good.png": _good(r), **files}
    for name, content in files.items():
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    return folder


def _several(r: random.Random) -> dict[str, bytes]:
    return {f"{i}{suffix}": content for i, (content, suffix) in enumerate(_image(r) for _ in range(8))}


def _other_formats(r: random.Random) -> dict[str, bytes]:
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%touch {CANARY}) (w) file\n%%EOF\n"
    others = {
        "eps.png": eps.encode(),
        "svg.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "pickle.webp": pickle.dumps(TOUCH, 0),
        "empty.png": b"",
        "text.gif": b"hello",
        "html.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "elf.bmp": b"\x7fELF" + r.randbytes(60),
        "riff.webp": b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8L",
    }
    return _some(others, r)


def _some(files: dict[str, bytes], r: random.Random) -> dict[str, bytes]:
    return {name: files[name] for name in r.sample(sorted(files), r.randint(1, len(files)))}


def chunk(name: bytes, content: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int = 8, colour: int = 2, extra: bytes = b"", content: bytes = b"\0") -> bytes:
    """A PNG that says so, whatever is in it."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return start + extra + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def _huge_headers(r: random.Random) -> dict[str, bytes]:
    side = r.choice([60_000, 2**31 - 1, 9000, 13_000, 2**16 - 1, 2**24])
    jpeg, gif, tiff = (bytearray(_image(r, (8, 8), kind)[0]) for kind in ("JPEG", "GIF", "TIFF"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", min(side, 65_500), min(side, 65_500))
    gif[6:10] = struct.pack("<HH", min(side, 65_535), min(side, 65_535))
    bmp = struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    width, wide = (struct.pack("<HHII", 256, 4, 1, size) for size in (8, side % 2**32))
    files = {
        "1.png": png(side, side, r.choice([1, 8, 16]), r.choice([0, 2, 6])),
        "2.ppm": b"P6 %d %d %d\n" % (side, side, r.choice([1, 255, 4095, 65_535])) + bytes(100),
        "3.bmp": b"BM" + bmp + bytes(46),
        "4.tiff": tiff.replace(width, wide),
        "5.jpg": jpeg,
        "6.gif": gif,
        "7.pgm": b"P2 1" + b"0" * r.randint(8, 5000) + b" 1 255\n",
    }
    return _some(files, r)


@functools.cache
def _zeros(compress: Callable[[bytes], bytes]) -> bytes:
    """64 MiB of zeros, as a stream that may be repeated."""
    return compress(bytes(1 << 26))


def _deflate(content: bytes) -> bytes:
    """A piece of a deflate stream that does not depend on what comes before it."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush(zlib.Z_FULL_FLUSH)


def _deflated_zeros(size: int) -> bytes:
    whole, rest = divmod(size, 1 << 26)
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return _zeros(_deflate) * whole + compressor.compress(bytes(rest)) + compressor.flush()


@functools.cache
def _black(side: int, channels: int, colour: int) -> bytes:
    size = (1 + channels * side) * side
    adler = struct.pack(">I", (size % 65_521) << 16 | 1)
    return png(side, side, 8, colour, content=b"\x78\x9c" + _deflated_zeros(size) + adler)


def _bombs(r: random.Random) -> dict[str, bytes]:
    """Small files that are large images; some are allowed, and all at once would not fit into memory."""
    side = r.choice([7000, 8100, 9000])
    channels, colour = r.choice([(3, 2), (4, 6), (1, 0)])
    count = r.randint(1, 6)
    return {f"{i}.png": _black(side, channels, colour) for i in range(count)}


def _metadata_bomb(r: random.Random) -> dict[str, bytes]:
    many = zlib.compress(bytes(200 << 20), 1)
    bombs = [
        chunk(b"zTXt", b"Comment\0\0" + many),
        chunk(b"iCCP", b"profile\0\0" + many),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + many),
        b"".join(chunk(b"tEXt", b"key%d\0" % i + bytes(900_000)) for i in range(100)),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + r.randbytes(500)),
    ]
    return {"1.png": png(8, 8, extra=r.choice(bombs), content=zlib.compress(bytes(8 * 25)))}


def _exif(r: random.Random) -> dict[str, bytes]:
    """Orientations that are none, and metadata that are damaged."""
    files = {}
    for i in range(6):
        exif = Image.Exif()
        exif[0x112] = r.choice([0, 1, 3, 6, 8, 9, 255, 65_535])
        exif[0x010E] = "x" * r.randint(0, 99)
        content = bytearray(exif.tobytes())
        for _ in range(r.randint(0, 5)):
            content[r.randrange(6, len(content))] = r.randrange(256)
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, "JPEG", exif=bytes(content))
        files[f"{i}.jpg"] = out.getvalue()
    return files


def _tiff_loop(r: random.Random) -> dict[str, bytes]:
    """Directories that follow one another in a circle, and tags that point anywhere."""
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, r.choice([1, 2**31]), 8)]
    tags += [(278, 4, 1, 8), (279, 4, 1, r.choice([64, 2**32 - 1])), (330, 4, 1, 8), (34_665, 4, 1, 8)]
    counts = (1, 2**20, 2**32 - 1)
    tags += [(r.randrange(65_536), r.randrange(14), r.choice(counts), r.randrange(2**32)) for _ in range(9)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 8)
    return {"1.tif": b"II*\0\x08\0\0\0" + directory}


def _dark(r: random.Random) -> dict[str, bytes]:
    """Values of 12 bits or fewer in 16."""
    top = 1 << r.randint(1, 12)
    rows = b"".join(b"\0" + struct.pack(">8H", *(r.randrange(top) for _ in range(8))) for _ in range(8))
    return {"1.png": png(8, 8, 16, 0, content=zlib.compress(rows))}


_NAMES = [
    *("caf\udce9/1.png", "\udcff\udcfe/\udc80.png", "ﬁne/ñ.png", "a\nb/1.png", "\x1b[31mred\x1b[0m/1.png"),
    *("\u202egnp/1.png", "-rf/--help.png", "{}/%s.png", " / .png", "CON/nul.png"),
    *("x" * 200 + "/" + "y" * 250 + ".png", "9" * 240 + ".png", "deep/" * 300 + "1.png"),
    "'\"$(touch code-was-run)`touch code-was-run`/1.png",
]
PICTURES: dict[str, Callable[[random.Random], dict[str, bytes]]] = {
    "image-damaged": lambda r: {name: _damaged(content, r) for name, content in _several(r).items()},
    "image-noise": lambda r: {
        name: content[: r.randint(4, 30)] + r.randbytes(r.randint(0, 3000)) for name, content in _several(r).items()
    },
    "image-other-format": _other_formats,
    "image-huge-header": _huge_headers,
    "image-metadata-bomb": _metadata_bomb,
    "image-exif": _exif,
    "image-tiff-loop": _tiff_loop,
    "image-dark-16-bit": _dark,
    "image-sizes": lambda r: {f"{i}.png": _image(r, (i + 1, r.randint(1, 9)), "PNG")[0] for i in range(4)},
    "names": lambda r: {name: _good(r) for name in r.sample(_NAMES, r.randint(1, 8))},
}
for _kind, _files in PICTURES.items():
    _hostile(_kind)(lambda folder, r, files=_files: _pictures(folder, files(r), r))
_hostile("image-bomb", *_PREPARE, "--resolution", "8")(lambda folder, r: _pictures(folder, _bombs(r), r))

# Folders


@_hostile("name-of-the-folder")
def _(folder: Path, r: random.Random) -> Path:
    name = r.choice([b"caf\xe9", b"\xff", b"a\nb", "…".encode(), b"\x1b[31m", b"~nobody-at-all"])
    path = os.path.join(os.fsencode(folder), name)
    os.mkdir(path)
    return _pictures(Path(os.fsdecode(path)), {"1.png": _good(r)}, r)


@_hostile("links")
def _(folder: Path, r: random.Random) -> Path:
    _pictures(folder, {"a/1.png": _good(r), "b/2.png": _good(r)}, r)
    for _ in range(r.randint(1, 6)):
        place = folder / r.choice(["", "a", "b"]) / f"{r.randrange(10**6)}{r.choice(['', '.png'])}"
        targets = [".", "..", "../a", "../b", place.name, "/nowhere", "../a/1.png", "/dev/zero", "/dev/full"]
        place.symlink_to(r.choice(targets))
    return folder


@_hostile("links-exponential")
def _(folder: Path, r: random.Random) -> Path:
    """A folder that can be reached in 2³⁰ ways."""
    _pictures(folder, {f"{i}/{i}.png": _good(r) for i in range(31)}, r)
    for i in range(30):
        for name in "xy":
            (folder / str(i) / name).symlink_to(f"../{i + 1}")
    return folder


@_hostile("not-a-file")
def _(folder: Path, r: random.Random) -> Path:
    """A pipe, a device or a socket as the source."""
    path = folder / r.choice(["x", "x.zip", "x.tar.gz", "x.png"])
    _special(path, r)
    return path


def _special(path: Path, r: random.Random) -> None:
    kind = r.choice(["pipe", "/dev/zero", "/dev/urandom", "/dev/full", "socket", "link to a pipe"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{os.open(path.parent, os.O_RDONLY)}/{path.name}")
    else:
        path.symlink_to(kind)


@_hostile("not-a-file-inside")
def _(folder: Path, r: random.Random) -> Path:
    _pictures(folder, {"1.jpg/2.png": _good(r)}, r)
    _special(folder / r.choice(["x.png", "data.mdb", "train_X.bin", "img_align_celeba.zip"]), r)
    return folder


@_hostile("not-a-file-named", "data", "prepare", "celeba", "--no-verify", "--data-root", "{}")
def _(folder: Path, r: random.Random) -> Path:
    _special(folder / "img_align_celeba.zip", r)
    return folder


# Archives


def _contents(r: random.Random) -> dict[str, bytes]:
    return {f"{'ab'[i % 2]}/{i}.png": _good(r) for i in range(r.randint(1, 12))}


def _zip(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def _member(name: str, size: int, kind: bytes = tarfile.REGTYPE, **changes: object) -> bytes:
    """The header of a tar's member, whatever follows it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in changes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def _tar(files: dict[str, bytes]) -> bytes:
    return b"".join(_member(name, len(content)) + _padded(content) for name, content in files.items()) + bytes(10_240)


_COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, "": bytes}


def _tar_file(r: random.Random, make: Callable[[Callable], bytes], *suffixes: str) -> tuple[str, bytes]:
    """A tar with one of the suffixes; `make` gets what compresses."""
    suffix = r.choice(suffixes or list(_COMPRESS))
    return f"x.tar{suffix}", make(_COMPRESS[suffix])


def _file(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _damaged_directory(r: random.Random) -> tuple[str, bytes]:
    """Bits flipped in the table at the end."""
    content = _zip(_contents(r), zipfile.ZIP_DEFLATED)
    return "x.zip", flipped(content, r, content.index(b"PK\x01\x02"))


def _zip_bomb(r: random.Random) -> tuple[str, bytes]:
    sizes = [r.randrange(300 << 20, 1 << 30) for _ in range(r.randint(1, 6))]
    return "x.zip", _raw_zip({f"{i}.png": (_deflated_zeros(size), size) for i, size in enumerate(sizes)})


def _raw_zip(files: dict[str, tuple[bytes, int]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of what is compressed already, with the size that each file claims; no checksum is right."""
    content, table = b"", b""
    for name, (data, size) in files.items():
        fields = struct.pack("<HHHHIIIHH", 0, method, 0, 33, 0, len(data), size, len(name), 0)
        table += b"PK\x01\x02" + struct.pack("<HH", 20, 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(content))
        table += name.encode()
        content += b"PK\x03\x04" + struct.pack("<H", 20) + fields + name.encode() + data
    end = struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(table), len(content), 0)
    return content + table + b"PK\x05\x06" + end


def _lies_about_size(r: random.Random) -> tuple[str, bytes]:
    streams = {zipfile.ZIP_DEFLATED: _deflated_zeros(1 << 30), zipfile.ZIP_BZIP2: _zeros(bz2.compress) * 16}
    method = r.choice(list(streams))
    return "x.zip", _raw_zip({"1.png": (streams[method], r.choice([0, 100, 1 << 20, 2**32 - 1]))}, method)


def _zip_names(r: random.Random) -> tuple[str, bytes]:
    names = ["../../1.png", "/etc/1.png", "a\\b\\1.png", "a//../1.png", "C:\\1.png", "nul.png", "1.png", "con/1.png"]
    names.append("9" * 5000 + ".png")
    content = _zip({name: _good(r) for name in r.sample(names, r.randint(1, 6))})
    if r.random() < 0.3:
        content = content.replace(r.choice([b"1.png", b"nul.png"]), r.choice([b"\xff.png", b"\0.png"]))
    return "x.zip", content


def _zip_in_zip(r: random.Random) -> tuple[str, bytes]:
    inner = _zip({"1.png": b"x"})
    for _ in range(r.randint(1, 4)):
        inner = _zip({r.choice(["inner.zip", "1.png"]): inner})
    return r.choice(["x.zip", "x.tar", "x.png"]), inner


def _tar_bomb(r: random.Random) -> tuple[str, bytes]:
    pieces = [r.randint(8, 24) for _ in range(r.randint(1, 3))]

    def make(compress: Callable) -> bytes:
        files = (compress(_member(f"{i}.png", n << 26)) + _zeros(compress) * n for i, n in enumerate(pieces))
        return b"".join(files) + compress(bytes(1024))

    return _tar_file(r, make, ".gz", ".xz", ".bz2")


def _extended_headers(r: random.Random) -> tuple[str, bytes]:
    """Names and attributes that are too long, too many, or not what they say."""
    kind = r.choice([tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK])
    good = _member("1.png", 100) + bytes(512 + 1024)
    heads = [
        (_member("x", 20, kind) + _padded(b"20 path=aaaaaaaaaaa\n")) * 20_000,
        _member("x", 300, kind) + _padded(r.randbytes(300)),
        _member("x", 30, tarfile.XHDTYPE) + _padded(b"30 size=9999999999999999999999\n"),
        _member("x", 22, tarfile.XHDTYPE) + _padded(b"22 GNU.sparse.size=-5\n"),
        _member("x", -5, kind),
    ]
    makes = [lambda compress, head=head: compress(head + good) for head in heads]
    makes.append(lambda compress: compress(_member("x", 16 << 26, kind)) + _zeros(compress) * 16 + compress(good))
    return _tar_file(r, r.choice(makes), ".gz", ".xz", "")


def _kinds_of_members(r: random.Random) -> tuple[str, bytes]:
    """Links, devices and pipes, which must not be followed or made, and sparse files."""
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE, b"Z")
    content = b""
    for i in range(r.randint(1, 8)):
        target = r.choice(["/etc/passwd", "../../1.png", f"{i}.png", "/dev/zero", "0.png"])
        content += _member(r.choice([f"{i}.png", "../../1.png", "/1.png"]), 0, r.choice(kinds), linkname=target)
    return "x.tar", content + _tar(_contents(r) if r.random() < 0.5 else {})


def _many_members(r: random.Random) -> tuple[str, bytes]:
    count = r.randint(5, 30)
    empty = _member("1.png", 0) * 1000
    return _tar_file(r, lambda compress: compress(empty) * count + compress(bytes(1024)), ".gz", ".xz")


def _dictionary(r: random.Random) -> tuple[str, bytes]:
    """A stream that asks for gigabytes to be unpacked."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20, "preset": 0}]
    content = bytearray(lzma.compress(_tar(_contents(r)), filters=filters))
    content[16] = r.randint(36, 40)
    size = (content[12] + 1) * 4
    content[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(bytes(content[12 : 12 + size - 4])))
    return "x.tar.xz", bytes(content)


def _text_or_noise(r: random.Random) -> tuple[str, bytes]:
    magics = [b"", b"PK", b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00", b"hello", bytes(257) + b"ustar"]
    content = r.choice(magics) + r.randbytes(r.choice([0, 10, 1000, 20_000]))
    return r.choice(["x.zip", "x.tar", "x.tar.gz", "x"]), content


_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
ARCHIVES: dict[str, Callable[[random.Random], tuple[str, bytes]]] = {
    "zip-damaged": lambda r: ("x.zip", _damaged(_zip(_contents(r), r.choice(_METHODS)), r)),
    "zip-directory-damaged": _damaged_directory,
    "zip-bomb": _zip_bomb,
    "zip-lies-about-size": _lies_about_size,
    "zip-names": _zip_names,
    "zip-in-zip": _zip_in_zip,
    "tar-damaged": lambda r: _tar_file(r, lambda compress: _damaged(compress(_tar(_contents(r))), r)),
    # The compressed stream is whole, what is in it is not.
    "tar-damaged-inside": lambda r: _tar_file(r, lambda compress: compress(_damaged(_tar(_contents(r)), r))),
    "tar-bomb": _tar_bomb,
    "tar-extended-headers": _extended_headers,
    "tar-kinds-of-members": _kinds_of_members,
    "tar-many-members": _many_members,
    "xz-dictionary": _dictionary,
    "text-or-noise": _text_or_noise,
}
for _kind, _make in ARCHIVES.items():
    _hostile(_kind)(lambda folder, r, make=_make: _file(folder, *make(r)))


@_hostile("tar-sizes")
def _(folder: Path, r: random.Random) -> Path:
    """Members that claim sizes, in a file that has holes where their content should be."""
    path = folder / "x.tar"
    sizes = [r.choice([1, 3 << 30, 8**11 - 1, 2**40, 2**62]) for _ in range(r.randint(1, 3))]
    with path.open("wb") as file:
        for i, size in enumerate(sizes):
            file.write(_member(f"{i}.png", size))
            if size <= 3 << 30:
                file.seek(size + -size % 512, os.SEEK_CUR)
        file.truncate(file.tell() + 1024)
    return path


# CIFAR, STL-10, MNIST


def _archive(folder: Path, files: dict[str, bytes], top: str) -> Path:
    content = _tar({f"{top}/{name}": content for name, content in files.items()})
    return _file(folder, "x.tar.gz", gzip.compress(content, 1))


_CIFAR = ("data", "prepare", "{}", "--no-verify", "--split", "test")


def _array(shape: bytes = b"(K\x01M\x00\x0ct", dtype: bytes = b"U\x02u1K\x00K\x01t", raw: bytes = bytes(3072)) -> bytes:
    """The steps of an array's pickle as Python 2 wrote it."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01" + shape
    array += b"cnumpy\ndtype\n(" + dtype + b"R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return array + b"I00\nT" + struct.pack("<I", len(raw)) + raw + b"tb"


def _batch(array: bytes, labels: bytes = b"(K\x01l") -> bytes:
    return b"\x80\x02(U\x04data" + array + b"U\x06labels" + labels + b"d."


@_hostile("cifar-pickle", *_CIFAR)
def _(folder: Path, r: random.Random) -> Path:
    pickles = [
        pickle.dumps(TOUCH, 0),
        b'cbuiltins\neval\n(S\'open("code-was-run", "w")\'\ntR.',
        b'cbuiltins\nexec\n(S\'open("code-was-run", "w")\'\ntR.',
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x12touch code-was-run\x85R.",
        b"(S'touch code-was-run'\nios\nsystem\n.",
        b"cgnfast.io.files\nwrite_text\n(S'code-was-run'\nS'x'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"Nr\xff\xff\xff\x7f.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 34) + b".",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        b")" + b"\x85" * 1_000_000 + b"}q\0(h\0K\x01u.",
        b"}(" + b")" + b"\x85" * 1_000_000 + b"K\x01u.",
        b"]" * 3_000_000 + b".",
        _batch(_array(dtype=b"U\x02O8K\x00K\x01t")),
        _batch(_array(dtype=b"U\x03V99K\x00K\x01t")),
        _batch(_array(dtype=b"U\x02f8K\x00K\x01t")),
        _batch(_array(dtype=b"]U\x01a(U\x02O8K\x00tat")),
        _batch(_array(shape=b"(J\xff\xff\xff\x7fM\x00\x0ct")),
        _batch(_array(shape=b"(J\xff\xff\xff\xffM\x00\x0ct")),
        _batch(_array(shape=b"(K\x01K\x01M\x00\x0ct")),
        _batch(_array(raw=bytes(10))),
        _batch(_array(), b"(J\xff\xff\xff\xffl"),
        _batch(_array(), b"(K\x0al"),
        _batch(_array(), b"(I01\nl"),
        _batch(_array(), b"(l"),
        _batch(b"K\x01"),
        _batch(b"cnumpy\ndtype\n(U\x02u1tR"),
        _batch(b"cnumpy\nndarray\n((J\xff\xff\xff\x7ftU\x02u1tR"),
        b"cnumpy\ndtype\n}S'x'\nK\x01sb.",
        b"P1\n.",
        b"\x82\x01.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"",
        b".",
    ]
    return _archive(folder, {"test_batch": r.choice(pickles)}, "cifar-10-batches-py")


@_hostile("cifar-damaged", *_CIFAR)
def _(folder: Path, r: random.Random) -> Path:
    batch = _batch(_array(raw=r.randbytes(3072)))
    # In its head, and behind the pixels.
    content = flipped(batch[:170], r) + batch[170:] if r.random() < 0.7 else _damaged(batch, r)
    return _archive(folder, {"test_batch": content}, "cifar-10-batches-py")


@_hostile("stl10-damaged", *_CIFAR)
def _(folder: Path, r: random.Random) -> Path:
    images = r.choice([bytes(27_648), bytes(27_647), b"", bytes(27_648 * 3)])
    labels = r.choice([b"\1", b"\0", b"\xff", b"", b"\1" * 9000, b"\1" * 3])
    return _archive(folder, {"test_X.bin": images, "test_y.bin": labels}, "stl10_binary")


@_hostile("idx", "data", "prepare", "mnist", "--no-verify", "--data-root", "{}")
def _(folder: Path, r: random.Random) -> Path:
    def idx(*shape: int, content: bytes | None = None, kind: int = 8) -> bytes:
        head = bytes([0, 0, kind, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        return gzip.compress(head + (bytes(math.prod(shape)) if content is None else content), 1)

    good = idx(3, 28, 28)
    images = [good, _damaged(good, r), idx(3, 28, 28, kind=r.choice([9, 13, 14])), idx(3, 0, 28), idx(3, 1, 2**24)]
    images += [idx(2**32 - 1, 2**32 - 1, 2**32 - 1, content=b""), idx(0, 28, 28), idx(28, 28), b"hello", b""]
    images += [idx(60_000, 28, 28, content=b"") + _zeros(gzip.compress) * 40, gzip.compress(b"\0\0\x08\x03\0\0")]
    labels = [idx(3), idx(2), idx(3, content=b"\xff" * 3), _damaged(idx(3), r), b"", idx(60_000)]
    labels += [idx(2**31, content=b"")]
    _file(folder, "train-images-idx3-ubyte.gz", r.choice(images))
    _file(folder, "train-labels-idx1-ubyte.gz", r.choice(labels))
    return folder


# LMDBs


def _rows(r: random.Random) -> dict[str, bytes]:
    count = r.randint(1, 200)
    images = {str(i): _good(r) + bytes(r.choice([0, 5000])) for i in range(count)}
    layout = r.choice(["numbers", "labels", "hashes"])
    if layout == "labels":
        return {f"d{i}": image for i, image in images.items()} | {f"l{i}": b"%d" % (int(i) % 3) for i in images}
    return images if layout == "numbers" else {r.randbytes(20).hex(): image for image in images.values()}


@_hostile("lmdb-damaged")
def _(folder: Path, r: random.Random) -> Path:
    data = database(folder, _rows(r)) / "data.mdb"
    content = data.read_bytes()
    # The first two pages describe the others.
    head = r.choice([8192, len(content)])
    data.write_bytes(r.choice([flipped(content[:head], r) + content[head:], _damaged(content, r), cut(content, r)]))
    return folder


@_hostile("lmdb-pages")
def _(folder: Path, r: random.Random) -> Path:
    """Headers of pages, where the numbers of other pages and the places of entries are."""
    data = database(folder, _rows(r)) / "data.mdb"
    content = bytearray(data.read_bytes())
    for _ in range(r.randint(1, 30)):
        page = r.randrange(2, len(content) // 4096)
        at = page * 4096 + r.randrange(0, 200)
        content[at] = r.choice([0, 255, r.randrange(256)])
    data.write_bytes(content)
    return folder


@_hostile("lmdb-content")
def _(folder: Path, r: random.Random) -> Path:
    image = _good(r)
    rows = r.choice(
        [
            {"d0": image, "l0": b"99999999"},
            {"d0": image, "l0": b"9" * 5000},
            {"d0": image, "l0": b"-1"},
            {"d0": image, "l0": b""},
            {"d0": image, "l0": b"0", "d2": image, "l2": b"0"},
            {"0": image, "2": image},
            {"0": b""},
            {"0": bytes(40 << 20)},
            {"0": _black(7000, 3, 2)},
            {"\xff" * 50: image, "\n": image},
            {},
        ]
    )
    return database(folder, rows)


@_hostile("lmdb-not-one")
def _(folder: Path, r: random.Random) -> Path:
    contents = [b"", b"hello", r.randbytes(8192), bytes(1 << 20), bytes(16) + b"\xde\xc0\xef\xbe" + bytes(9000)]
    _special_or(folder / "data.mdb", r.choice(contents), 0.3, r)
    return folder


def _special_or(path: Path, content: bytes, share: float, r: random.Random) -> None:
    if r.random() < share:
        _special(path, r)
    else:
        path.write_bytes(content)


# The cache


_ENTRY = {"name": "x", "split": "train", "warning": "", "fingerprint": "0" * 64, "shape": [2, 1, 4, 4], "classes": []}
_ENTRY |= {"format": 1, "crop": 0, "skipped": 0, "modified_ns": 0, "labels": False, "source": {}}


def _cache(folder: Path, r: random.Random) -> Path:
    """The cache that the command will find, with a damaged entry."""
    place = folder.parent / "cache" / "prepared"
    place.mkdir(parents=True)
    key, value = r.choice(
        [
            ("shape", [2**40, 3, 2**20, 2**20]),
            ("shape", [-2, 1, -4, 4]),
            ("shape", [2, 1, 4, "4"]),
            ("shape", [2, 1, 4, 4.0]),
            ("shape", [0, 1, 4, 4]),
            ("shape", [[], {}, None, 1]),
            ("shape", [10**4000, 1, 1, 1]),
            ("classes", [1, None, []]),
            ("classes", {"a": 1}),
            ("labels", True),
            ("name", 5),
            ("name", "\ud800"),
            ("modified_ns", 10**400),
            ("format", True),
            ("skipped", -1),
            ("fingerprint", None),
            ("warning", "\x1b[31m" * 1000),
        ]
    )
    text = json.dumps({**_ENTRY, key: value}).encode()
    texts = [text, text, _damaged(text, r), b"[" * 200_000, b"\xff\xfe", b"null", b"9" * 10_000, b"{" + bytes(100)]
    _special_or(place / "x-train-full-0123456789abcdef.json", r.choice(texts), 0.15, r)
    _special_or(place / "x-train-full-0123456789abcdef.bin", bytes(r.choice([0, 31, 32, 33, 48])), 0.15, r)
    return folder


for _command, *_words in (["list"], ["verify"], ["clear", "--all"]):
    HOSTILE.append(Hostile(f"cache-{_command}", _cache, lambda _, words=(_command, *_words): ["data", *words]))


def main(kinds: list[str]) -> int:
    """One file of each kind, or of those named; a line of JSON for each."""
    hostiles = every()
    if unknown := set(kinds) - {hostile.kind for hostile in hostiles}:
        raise SystemExit(f"no such kind: {', '.join(sorted(unknown))}")
    failed = 0
    for hostile in hostiles:
        if not kinds or hostile.kind in kinds:
            outcome = attack(hostile, 0)
            failed += bool(outcome.faults)
            print(json.dumps(vars(outcome)), flush=True)
    return failed


if __name__ == "__main__":
    # The module that the other files add their kinds to.
    from tests import hostile_files

    raise SystemExit(hostile_files.main(sys.argv[1:]))
