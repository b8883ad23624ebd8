"""Sections that fail in every way that a section can, for `benchmarks.gpu.crew`."""

import os
import signal
import subprocess
import time

from benchmarks.gpu.section import Section


def works(context):
    yield {"found": 1}
    yield {"found": 2}


def raises(context):
    yield {"found": 1}
    raise ValueError("a planted failure")


def hangs(context):
    yield {"found": 1}
    _sleeps_for_ever()


def _sleeps_for_ever():
    time.sleep(600)


def dies(context):
    yield {"found": 1}
    os._exit(139)


def aborts(context):
    yield {"found": 1}
    os.abort()


def loses_a_part(context):
    yield {"variant": "a", "note": "a: left out", "traceback": "in this line"}
    yield {"found": 1}


def talks(context):
    import numpy

    print("a line that a library has begun", end="", flush=True)
    yield {"found": numpy.float32(1.5), "dtype": numpy.dtype("int8")}
    os.write(1, b"not UTF-8: \xff\n@message {, not JSON\n")
    yield {"found": float("nan")}


def prepared(context):
    time.sleep(0.2)
    context.wait()
    yield {"measured": time.monotonic()}


def never_ready(context):
    # In a group of its own, as that of the tests.
    subprocess.Popen(["sleep", "600"], process_group=0)
    _sleeps_for_ever()
    yield {}


def interrupts_itself(context):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        yield {"found": 1}


def slow(context):
    begun = time.monotonic()
    time.sleep(0.5)
    yield {"from": begun, "to": time.monotonic()}


SECTIONS = {
    name: Section(f"{__name__}:{name}", limit_s=60 if name != "hangs" else 0.5)
    for name, function in list(globals().items())
    if callable(function) and not name.startswith("_") and name != "Section"
}
