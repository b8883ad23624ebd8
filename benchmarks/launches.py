"""What the critic's part of a step and the generator launch on a GPU, by kind, and the bytes that this moves.

    python benchmarks/launches.py [critic ...] [--precision bfloat16] [--triton-convolutions] [--each]

Counted, on any machine that has Triton; nothing is computed.
"""

import argparse
import importlib.util
import sys

if importlib.util.find_spec("triton") is None:
    sys.exit("launches.py counts Triton's launches, and Triton is not installed: pip install triton")

from gnfast.bench.count import Work
from gnfast.bench.critics import SHIPPED
from gnfast.bench.gpu_ways import IN_TRITON
from gnfast.bench.launches import (
    GENERATOR_STEPS,
    STEPS,
    bytes_besides_products,
    generated,
    launched,
    least_bytes,
)
from gnfast.bench.mode import PRECISIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("critics", nargs="*", default=["CNN 32", "ResNet 32"], help=", ".join(SHIPPED))
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--triton-convolutions", action="store_true", help="what the tuner may choose, for all of them")
    parser.add_argument("--each", action="store_true", help="list each launch as well")
    options = parser.parse_args()
    triton = (*IN_TRITON, "conv") if options.triton_convolutions else IN_TRITON
    for name in options.critics:
        for step in STEPS:
            found = launched(name, step, options.precision, triton=triton)
            print(f"{name}, {step} step, 128 images, {options.precision}: {found.launches} launches")
            list_kinds(found)
            if step == "critic" and triton is IN_TRITON:
                moved, least = bytes_besides_products(found) / 1e6, least_bytes(name, options.precision) / 1e6
                print(f"        besides products {moved:.1f} MB, at least {least:.1f} MB: {moved / least:.2f}")
            list_each(found, options.each)
        for step in GENERATOR_STEPS:
            found, stated = (generated(name, step, options.precision, triton=triton) for triton in (IN_TRITON, ()))
            images = "the images of all critic updates" if step == "forward" else "128 images"
            print(f"{name}, generator's {step}, {images}, {options.precision}: {found.launches} launches")
            list_kinds(found)
            moved, before = bytes_besides_products(found) / 1e6, bytes_besides_products(stated) / 1e6
            print(f"        besides products {moved:.1f} MB, by PyTorch {before:.1f} MB: {moved / before:.2f}")
            list_each(found, options.each)


def list_kinds(found: Work) -> None:
    for kind, (count, moved) in found.by_kind().items():
        print(f"{count:6}  {kind:32} {moved / 1e6:10.2f} MB")


def list_each(found: Work, wanted: bool) -> None:
    for launch in found.launched if wanted else ():
        print(f"        {launch.kind:32} {launch.name:32} {launch.read:12} {launch.written:12}")


if __name__ == "__main__":
    main()
