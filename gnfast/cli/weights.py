"""`gnfast weights [FILE]`: where Inception's weights are on this machine, or where to get them; is a file them?"""

from dataclasses import dataclass

from gnfast.cli.common import UsageError, columns
from gnfast.cli.options import argument, parse
from gnfast.io.files import expanded

HELP = """\
The weights of the Inception network that FID, IS and KID are defined by: where they are on this machine, or where to
get them. With FILE: whether that file is them, by its SHA-256. Status 1 where they are not here.

Examples:
  gnfast weights
  gnfast weights --download
  gnfast weights Downloads/pt_inception-2015-12-05-6726825d.pth
"""


@dataclass(frozen=True)
class WeightsOptions:
    """Which file, and whether to fetch."""

    file: argument("[FILE]") = ""
    """A file to compare with the official one."""
    download: bool = False
    """Fetch the official file to gnfast's cache folder where it is not here yet; its SHA-256 is verified."""


def run(words: list[str]) -> int:
    """`gnfast weights [FILE] [--download]`."""
    options = parse(WeightsOptions, words, "weights", help=HELP)
    from gnfast.metrics import weights

    if options.file:
        if options.download:
            raise UsageError("FILE and --download: got both, wanted one")
        path = expanded(options.file)
        weights.require_official(path)
        print(f"{path}: the official weights, SHA-256 {weights.OFFICIAL}")
        return 0
    path = weights.official(progress=True) if options.download else weights.found()
    if path is not None:
        print(f"{path}: the official weights, SHA-256 {weights.OFFICIAL}")
        return 0
    place, *others = weights.places()
    print("Inception's official weights are not on this machine, so there is no FID, IS or KID yet.\n")
    rows = [
        ("file", f"{weights.NAME}, 91 MiB"),
        ("SHA-256", weights.OFFICIAL),
        ("get it at", weights.URL),
        ("put it at", str(place)),
        *(("or at", str(other)) for other in others),
    ]
    print(columns(rows))
    print(
        "\n`gnfast weights --download` fetches it, `gnfast weights FILE` compares a file; --extractor-weights names\n"
        "one that is kept elsewhere. Scores without weights: --extractor classifier, for images with labels;\n"
        "--extractor pixels-8x8, rough, for any; or a function of your own, --extractor module:function\n"
        "(docs/evaluation.md)."
    )
    return 1
