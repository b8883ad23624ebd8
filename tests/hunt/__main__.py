"""`make hunt`: every hunter for its share of the time; or one trial again, by its seed."""

import argparse
import sys
import time

from tests.hunt import critics, files, kept, processes
from tests.hunt.cases import PRECISIONS
from tests.hunt.tally import Hunter, Tally

HUNTERS: dict[str, Hunter] = {
    "critics": critics.HUNTER,
    "kept": kept.HUNTER,
    "kills": processes.KILLS,
    "gpu-kills": processes.KILLS_AS_ON_A_GPU,
    "files": files.HUNTER,
    "hangs": processes.HANGS,
    "runs": processes.RUNS,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hunt", description=__doc__)
    parser.add_argument("hunters", nargs="*", metavar="HUNTER", help=f"of {', '.join(HUNTERS)}; all of them if none")
    parser.add_argument("--minutes", type=float, help="for all hunters together; without it, one trial is repeated")
    parser.add_argument("--count", type=int, help="end after as many trials of each hunter")
    parser.add_argument("--seed", type=int, help="of the trial to repeat, or to begin with (drawn if not given)")
    parser.add_argument("--dtype", choices=PRECISIONS, help="of random critics; by turns if not given")
    parser.add_argument("--kind", help="of hostile files; by turns if not given")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.hunters if name not in HUNTERS]:
        parser.error(f"no hunter is called {unknown[0]!r}; there are {', '.join(HUNTERS)}")
    names = options.hunters or list(HUNTERS)
    if options.minutes is None and options.count is None:
        if options.seed is None or len(names) != 1:
            parser.error("say for how many minutes, or which hunter to repeat with which seed")
        return int(HUNTERS[names[0]].repeat(options.seed, options))
    seed = time.time_ns() % 10**9 if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    until, tallies = time.monotonic() + 60 * (options.minutes or 60 * 24), []
    for place, name in enumerate(names):
        now = time.monotonic()
        tally = Tally(name, now + (until - now) / (len(names) - place), options.count or float("inf"))
        tallies.append(tally)
        HUNTERS[name].hunt(tally, seed, options)
        print(tally, flush=True)
    if len(tallies) > 1:
        print("\n".join(["", *map(str, tallies)]))
    return int(any(tally.failed for tally in tallies))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
