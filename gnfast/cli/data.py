"""`gnfast data`: the data sets, and the prepared pixels that are kept of them."""

import dataclasses
import inspect
import sys
from dataclasses import dataclass
from typing import Literal

import torch

from gnfast.cli.common import UsageError, columns
from gnfast.cli.options import argument, parse
from gnfast.config.chosen import of_its_data
from gnfast.config.presets import PRESETS
from gnfast.data import DataError, Request, cache, find, registered
from gnfast.data.source import Source
from gnfast.data.statistics import channel_statistics
from gnfast.errors import unknown
from gnfast.io.files import expanded, make_folder, output_file
from gnfast.io.numbers import counted, number

HELP = """\
usage: gnfast data COMMAND [ARGUMENTS]

Data sets: what is known, what is prepared, what is in it. Training prepares what it needs by itself; preparing it
before shows that all is there, and lets a run start at once.

commands:
{commands}

Decoded and resized images are kept in {folder}
($GNFAST_CACHE says where), and mapped into memory from there. docs/data.md has a table of the data sets.

examples:
  gnfast data list                                             what is known and what is prepared
  gnfast data prepare cifar10 --download                       fetch CIFAR-10, check it, prepare it
  gnfast data prepare stl10 --split unlabeled --resolution 48  STL-10 as GN-GAN trains on it
  gnfast data prepare celebahq --data-root CelebAMask-HQ.zip --resolution 128
  gnfast data prepare lsun-church --data-root church_outdoor_train_lmdb --resolution 256
  gnfast data prepare pictures.zip --preset gngan-cifar10-cnn  as that preset will ask for it
  gnfast data stats pictures.zip --resolution 64 --out look.png
  gnfast data verify                                           is what is prepared still what it was?
  gnfast data clear stl10                                      make room; --all deletes all that is prepared

`gnfast data COMMAND --help` explains every option.
"""

EXAMPLES = """
Examples:
  gnfast data {0} cifar10
  gnfast data {0} celeba --data-root img_align_celeba.zip --split all --resolution 64
"""


@dataclass(frozen=True)
class SourceOptions:
    """Which images, and how they are prepared."""

    source: argument("SOURCE")
    """A name (`gnfast data list`), or the path of images: a folder, zip, tar, LMDB, or one of `datasets`, Parquet, …"""
    preset: str = ""
    """Take the split, the resolution and the channels of this preset, where they are not given."""
    split: str | None = None
    """Which part: train (also if None), test, or another that the data set has (unlabeled, valid, all)."""
    resolution: int | None = None
    """Side in pixels to which images are resized; their own size if None."""
    channels: int | None = None
    """1 for grey, 3 for colour; what the images have if None."""
    crop: int | Literal["square"] | None = None
    """Side in pixels of the square in the middle that is cut out first, or `square` for the largest; 0 for none, the
    data set's own if None."""
    download: bool = False
    """Fetch a named data set's official archive when it is not there yet; its checksum is verified."""
    data_root: str = ""
    """Where a named data set's archive is or will be kept; gnfast's cache folder if empty."""
    verify: bool = True
    """Whether a named data set's archive must have its published checksum."""


@dataclass(frozen=True)
class StatsOptions(SourceOptions):
    """Which images, and where a grid of them goes."""

    out: str = ""
    """FILE.png for a grid of images; none if empty."""
    n: int = 64
    """How many images are in the grid, drawn at random."""
    seed: int = 0
    """Seed of that draw."""


@dataclass(frozen=True)
class VerifyOptions(SourceOptions):
    """Which images; all that are prepared where there is no SOURCE."""

    source: argument("[SOURCE]") = ""
    """A name (`gnfast data list`), or the path of images: a folder, zip, tar, LMDB, or one of `datasets`, Parquet, …"""


@dataclass(frozen=True)
class ClearOptions:
    """Whose prepared images."""

    names: argument("[NAME …]", tuple[str, ...]) = ()
    """Of data sets, as `gnfast data list` shows them."""
    all: bool = False
    """Of all data sets, and what preparations that did not end have left; without it and NAME, you are asked."""


@dataclass(frozen=True)
class ListOptions:
    """There are none."""


def run(words: list[str]) -> int:
    """`gnfast data COMMAND`."""
    if not words or words[0] in ("-h", "--help"):
        rows = [(f"  {name} {argument}".rstrip(), what) for name, (argument, what, _, _) in COMMANDS.items()]
        print(HELP.format(commands=columns(rows), folder=cache.folder()), end="")
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise UsageError(unknown("data command", name, COMMANDS))
    argument, _, kind, function = COMMANDS[name]
    usage = f"which images? usage: gnfast data {name} {argument} [--option value …]"
    examples = EXAMPLES.format(name) if issubclass(kind, SourceOptions) else ""
    options = parse(kind, rest, f"data {name}", help=f"{inspect.getdoc(function)}\n{examples}", usage=usage)
    function(options)
    return 0


def _list(_options: ListOptions) -> None:
    """The data sets with a name, and what is prepared of any.

    Examples:
      gnfast data list
    """
    print(columns([("name", "what"), *registered().items()]))
    print("\nAny folder, zip or tar of images is a data set as well, and so is an LMDB, Parquet, WebDataset, or what")
    print("Hugging Face's `datasets` saved.")
    entries = cache.entries()
    if not entries:
        print(f"\nNothing is prepared in {cache.folder()}.")
        return
    rows = [("prepared", "split", "images", "size", "crop", "on disk")]
    for entry in entries:
        count, channels, height, width = entry.header["shape"]
        size, crop = f"{channels}x{height}x{width}", str(entry.header["crop"] or "-")
        rows.append((entry.header["name"], entry.header["split"], f"{count:,}", size, crop, _bytes(entry.nbytes)))
    print("\n" + columns(rows))
    print(f"\n{_bytes(sum(entry.nbytes for entry in entries))} in {cache.folder()}")
    if left := cache.leftovers():
        print(
            f"{_bytes(sum(path.stat().st_size for path in left))} left by preparations that did not end "
            "(data clear --all)"
        )


def _prepare(options: SourceOptions) -> None:
    """Read the images once, and keep them as training wants them."""
    source = _find(options)
    dataset = cache.prepared(source)
    print(dataset)
    entry = cache.entry_of(source)
    print(f"in {entry.data}, {_bytes(entry.nbytes)}" if entry else "small and quick to read: not kept in the cache")
    print(f"fingerprint {dataset.fingerprint}")


def _verify(options: VerifyOptions) -> None:
    """Compare checksums: of SOURCE's archive with the published one, of prepared images with their own.

    Without SOURCE: all prepared images.
    """
    if options != VerifyOptions() and not options.source:
        raise UsageError("data verify: which images? usage: gnfast data verify [SOURCE [--option value …]]")
    if options.source:
        source = _find(options)
        checked, entry = source.check(), cache.entry_of(source)
        entries = [entry] if entry else []
        if not checked and not entry:
            raise UsageError(
                f"{options.source}: nothing to verify, neither an archive with a published checksum nor prepared images"
            )
    else:
        checked, entries = [], cache.entries()
        if not entries:
            print(f"Nothing is prepared in {cache.folder()}.")
    for path in checked:
        print(f"{path}: as published")
    damaged = 0
    for entry in entries:
        try:
            cache.verify(entry)
            print(f"{entry.data}: as prepared")
        except DataError as error:
            damaged += 1
            print(error)
    if damaged:
        raise UsageError(f"{damaged} of {len(entries)} are damaged")


def _stats(options: StatsOptions) -> None:
    """Count, size, mean and deviation of each channel, classes, a grid."""
    if options.n < 1:
        raise UsageError(f"--n: got {options.n}, wanted at least 1")
    out = output_file(options.out) if options.out else None
    dataset = cache.prepared(_find(options))
    count, channels, height, width = dataset.images.shape
    mean, deviation = ([f"{value:.4f}" for value in row.tolist()] for row in channel_statistics(dataset))
    rows = [
        ("images", f"{count:,}"),
        ("size", f"{channels}x{height}x{width}, {_bytes(dataset.images.nbytes)}"),
        ("mean", " ".join(mean) + " (of 0..1)"),
        ("deviation", " ".join(deviation)),
        ("fingerprint", dataset.fingerprint),
    ]
    if dataset.skipped:
        rows.insert(1, ("skipped", counted(dataset.skipped, "file")))
    print(dataset.name + "\n" + columns([(f"  {name}", value) for name, value in rows]))
    if dataset.labels is not None:
        shares = dataset.labels.bincount(minlength=len(dataset.classes))
        widest = max(1, int(shares.max()))
        named = zip(dataset.classes, shares.tolist(), strict=True)
        bars = [(f"  {name}", f"{number:,}", "▇" * round(30 * number / widest)) for name, number in named]
        print("classes\n" + columns(bars))
    if out:
        from gnfast.train.logs import grid

        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed))[: options.n]
        make_folder(out.parent)
        grid(dataset.images[chosen.sort().values]).save(out)
        print(out)


def _clear(options: ClearOptions) -> None:
    """Delete what is prepared of the named data sets, or all of it.

    Examples:
      gnfast data clear stl10
      gnfast data clear --all
    """
    if options.all and options.names:
        raise UsageError(f"data clear: got --all and {' '.join(options.names)}, wanted one of them")
    entries = cache.entries()
    names = {entry.header["name"] for entry in entries}
    for word in options.names:
        if word not in names:
            others = f", only of {', '.join(sorted(names))}" if names else ""
            raise UsageError(f"data clear: nothing is prepared of {word!r}{others}")
    chosen = [entry for entry in entries if not options.names or entry.header["name"] in options.names]
    left = [] if options.names else cache.leftovers()
    freed = sum(entry.nbytes for entry in chosen) + sum(path.stat().st_size for path in left)
    if freed and not options.names and not options.all:
        _require_consent(f"{len(chosen)} prepared data sets, {_bytes(freed)} in {cache.folder()}")
    for entry in chosen:
        entry.remove()
    for path in left:
        path.unlink()
    print(f"{_bytes(freed)} freed in {cache.folder()}")


def _require_consent(what: str) -> None:
    """That a person at a terminal wants all of it deleted; elsewhere nobody can be asked."""
    if not sys.stdin.isatty():
        raise UsageError(f"data clear: got no name, wanted some, or --all for {what}")
    print(f"Delete {what}? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("data clear: nothing is deleted")


# Command: (its arguments, what it does, what they are read into, what does it).
COMMANDS = {
    "list": ("", "what is known by name, and what is prepared", ListOptions, _list),
    "prepare": ("SOURCE", "read the images of a name or path once, and keep them", SourceOptions, _prepare),
    "verify": ("[SOURCE]", "compare archives and prepared images with their checksums", VerifyOptions, _verify),
    "stats": ("SOURCE", "what is in it: numbers, classes, a picture", StatsOptions, _stats),
    "clear": ("NAME …", "delete what is prepared", ClearOptions, _clear),
}


def _find(options: SourceOptions) -> Source:
    if options.preset and options.preset not in PRESETS:
        raise UsageError(unknown("preset", options.preset, PRESETS))
    preset = Request()
    if options.preset:
        usual = PRESETS[options.preset].config
        preset = of_its_data(dataclasses.replace(usual, data=options.source), usual, ())
    asked = {
        name: getattr(preset if getattr(options, name) is None else options, name)
        for name in ("split", "resolution", "channels")
    }
    root = expanded(options.data_root) if options.data_root else None
    request = Request(**asked, crop=options.crop, download=options.download, root=root, verify=options.verify)
    return find(options.source, request)


def _bytes(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{number(count, 3)} {unit}"
        count /= 1000
    return f"{number(count, 3)} GB"
