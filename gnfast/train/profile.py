"""Where a run's time goes, watched while it trains: `gnfast train --profile`, which leaves RUN/profile.html."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from gnfast.runs.profile_page import Window, write_profile
from gnfast.runs.timeline import Span
from gnfast.train.failures import is_full
from gnfast.train.spent import Spent
from gnfast.train.state import State

# Updates before the first that is timed, and those of a window: one is timed as it is, the next is profiled.
BEFORE, WINDOW = 20, 20
UPDATE, APART = "gnfast: update", "gnfast: apart"


class Profile:
    """Takes a session's updates in place of its State, and writes the page after a window of them and at the end.

    What the updates compute is the same. Leaving the block writes the page with the side work of the whole session.

    Args:
        state: the run.
        folder: its run folder.
        begun: what its start took so far.
        spent: what the session's side work takes; others add to it.
        say: called with a line for the user where something cannot be seen.
    """

    def __init__(self, state: State, folder: Path, begun: Spent, spent: Spent, say: Callable[[str], None]):
        self.state, self.folder, self.begun, self.spent, self.say = state, folder, begun, spent, say
        self.window: Window | None = None
        self._start, self._since = state.step, time.perf_counter()
        self._in_updates = self._apart = 0.0
        self._profiler: torch.profiler.profile | None = None
        self._tried = False
        self._course = self._run()
        next(self._course)

    def update(self) -> None:
        """One update of the run."""
        began = time.perf_counter()
        with record_function(UPDATE) if self._profiler else contextlib.nullcontext():
            self.state.update()
        self._in_updates += time.perf_counter() - began
        next(self._course)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Around work between two updates that takes as long as many: a window is as if it had not been."""
        # Kernels that begin in this stretch are its own.
        self._wait()
        began = time.perf_counter()
        with record_function(APART) if self._profiler else contextlib.nullcontext():
            yield
            self._wait()
        self._apart += time.perf_counter() - began

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *failure: object) -> None:
        ends_inside = self._profiler is not None
        if ends_inside:
            self._stopped()
        if ends_inside or not self._tried:
            self.say("profile: the session ended before its window of updates did; the page shows all but that")
        self._write()

    def _run(self) -> Iterator[None]:
        """What is done around updates: each `yield` is one."""
        length = min(WINDOW, (self.state.config.steps - self._start) // 3)
        yield
        self._wait()
        self.begun.mark("first update")
        for _ in range(min(BEFORE, length) - 1):
            yield
        while self._waits_for_graph():
            yield
        if length:
            self._wait()
            began, in_updates = time.perf_counter() - self._apart, self._in_updates
            for _ in range(length):
                yield
            self._wait()
            seconds = (time.perf_counter() - self._apart - began) / length
            host = (self._in_updates - in_updates) / length
            self._profiler = self._started()
            for _ in range(length):
                yield
            if self._profiler and (recorded := self._stopped()):
                self.window = self._seen(recorded, length, seconds, host)
                self._write()
        while True:
            yield

    def _waits_for_graph(self) -> bool:
        captured = self.state.captured
        return captured is not None and captured.device.type == "cuda" and not captured.captured

    def _wait(self) -> None:
        if self.state.device.type == "cuda":
            torch.cuda.synchronize(self.state.device)

    def _started(self) -> torch.profiler.profile | None:
        self._tried = True
        # It notes its start and its end on stderr.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        on_gpu = self.state.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with self._going_on():
            profiler = torch.profiler.profile(activities=activities)
            profiler.start()
            return profiler
        return None

    def _stopped(self) -> list[Any]:
        """The events that were recorded; none where that failed."""
        profiler, self._profiler = self._profiler, None
        with self._going_on():
            self._wait()
            profiler.stop()
            return profiler.profiler.kineto_results.events()
        return []

    def _seen(self, recorded: list[Any], length: int, seconds: float, host: float) -> Window | None:
        events = _without_apart(list(map(_event, recorded)))
        updates = [event.span for event in events if event.span.name == UPDATE and not event.on_gpu]
        kernels = [event.span for event in events if event.on_gpu and not event.note]
        if not updates:
            self.say("profile: the profiler recorded nothing; training goes on")
            return None
        if self.state.device.type == "cuda" and not kernels:
            self.say("profile: no kernels were recorded, as without CUPTI: the page shows operations of the CPU")
        spans = kernels or [event.span for event in events if not event.on_gpu]
        return Window(
            first=self.state.step - length + 1,
            last=self.state.step,
            seconds=seconds,
            host_seconds=host,
            spans=spans,
            begin=min(span.begin for span in updates),
            end=max(span.end for span in (*updates, *kernels)),
            thread=None if kernels else updates[0].lane,
        )

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """What fails here must not end a run."""
        try:
            yield
        except Exception as error:
            if is_full(error):
                raise
            self.say(f"profile: {type(error).__name__}: {' '.join(str(error).split())[:200]}; training goes on without")

    def _write(self) -> None:
        with self._going_on():
            graph = {} if self.state.captured is None else self.state.captured.seconds
            trained = time.perf_counter() - self._since, self.state.step - self._start
            write_profile(self.folder, self.window, self.begun.entries, self.spent.entries, graph, *trained)


class _Event(NamedTuple):
    span: Span
    on_gpu: bool
    note: bool
    """Not work, but a name that a program gave to a stretch of it."""


def _without_apart(events: list[_Event]) -> list[_Event]:
    """The events before, between and after the stretches that are apart, these cut out of the time."""
    for cut in sorted((event.span for event in events if event.span.name == APART and not event.on_gpu), reverse=True):
        kept = [event for event in events if not cut.begin <= event.span.begin < cut.end]
        length = cut.end - cut.begin
        events = [
            event._replace(span=event.span._replace(begin=event.span.begin - length, end=event.span.end - length))
            if event.span.begin >= cut.end
            else event
            for event in kept
        ]
    return events


def _event(event: Any) -> _Event:
    """One of the profiler's."""
    on_gpu = event.device_type() == DeviceType.CUDA
    lane = event.device_resource_id() if on_gpu else event.start_thread_id()
    span = Span(event.name(), event.start_ns(), event.start_ns() + event.duration_ns(), lane)
    return _Event(span, on_gpu, event.is_user_annotation() or span.name == UPDATE)
