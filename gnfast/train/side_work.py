"""What a run does besides its steps, in order: at once, or on a thread while a GPU goes on with the steps.

A piece of work sees the state as it was after the step that it belongs to. On a thread that is a copy, of which there
are three: training waits where the thread falls behind, and memory stays bounded. Rows of the log do with a copy of the
losses while none is free.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from gnfast.train.snapshot import Live, Rows, Snapshot, shown
from gnfast.train.spent import Spent
from gnfast.train.state import State

Seen = Live | Rows | Snapshot
Task = tuple[str, Callable[[Seen], None]]
"""A name, under which its seconds are counted, and what to do with the state."""

HANDED_OVER = "copies, waiting"
# One that is known to be good, one that is being looked at, and one for the next piece of work.
SNAPSHOTS = 3
# Without a thread, copies take at most this share of the time: going back further only repeats more steps.
COPY_SHARE = 0.001
# Pieces of work that may wait, most of them rows: seconds of training.
WAITING = 100
# A disk that does not answer is not to keep a run that has failed elsewhere.
PATIENCE = 60.0


def goes_on_beside(device: torch.device) -> bool:
    """Whether steps there leave the host free: a CPU would only share its cores."""
    return device.type == "cuda"


class SideWork:
    """Does pieces of work one after the other; the first that raises is the last.

    Args:
        state: the run's.
        threaded: on a thread of its own; otherwise `submit` does everything itself.

    Attributes:
        good: the state after the last piece of work that has shown it to be one to go back to.
        spent: what each task took, by its name, and what handing over took the training thread.
    """

    def __init__(self, state: State, threaded: bool):
        self._state = state
        twin = shown(state) if threaded else None
        self.good = Snapshot(twin)
        self.good.take(state)
        self.spent = Spent()
        self._failure: BaseException | None = None
        self._next_copy = 0.0
        self._thread = None
        if threaded:
            self._free: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()
            for _ in range(SNAPSHOTS - 1):
                self._free.put(Snapshot(twin))
            # Beside that of the steps.
            self._stream = torch.cuda.Stream(state.device) if state.device.type == "cuda" else None
            self._work: queue.Queue[tuple[Rows | Snapshot, Sequence[Task], bool] | None] = queue.Queue(WAITING)
            self._thread = threading.Thread(target=self._run, name="gnfast-side-work", daemon=True)
            self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether a piece of work has raised; `finish` tells."""
        return self._failure is not None

    def submit(self, tasks: Sequence[Task], proves: bool = False, rows: bool = False) -> None:
        """Has the tasks done with the state as it is now.

        Args:
            proves: whether the state is one to go back to if the first of them does not raise.
            rows: whether losses are all that they look at.

        Raises:
            Exception: what a task raised, where there is no thread.
        """
        with self.spent(HANDED_OVER):
            if self._thread is None:
                self._do(Live(self._state), tasks, proves)
            else:
                self._work.put((self._copy(rows), tasks, proves))

    def _copy(self, rows: bool) -> Rows | Snapshot:
        if rows and self._free.empty():
            # Then what there is to go back to stays the one before.
            return Rows(self._state)
        snapshot = self._free.get()
        snapshot.take(self._state)
        return snapshot

    def finish(self) -> None:
        """Waits until all is done.

        Raises:
            Exception: what a task raised.
        """
        if self._thread is not None:
            self._work.join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends the thread when it has done what it was given, whatever comes of it."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._work.put(None, timeout=PATIENCE)
                self._thread.join(PATIENCE)

    def _do(self, seen: Seen, tasks: Sequence[Task], proves: bool) -> None:
        for number, (name, task) in enumerate(tasks):
            with self.spent(name):
                task(seen)
            if number == 0 and proves:
                self._keep(seen)

    def _keep(self, seen: Seen) -> None:
        if isinstance(seen, Live):
            began = time.perf_counter()
            if began >= self._next_copy:
                self.good.take(self._state)
                took = time.perf_counter() - began
                self._next_copy = began + took / COPY_SHARE
        elif isinstance(seen, Snapshot):
            self.good, free = seen, self.good
            self._free.put(free)

    def _run(self) -> None:
        with self._beside():
            while (work := self._work.get()) is not None:
                seen, *rest = work
                try:
                    if not self.failed:
                        seen.arrive()
                        self._do(seen, *rest)
                        if self._stream is not None:
                            # Before what was seen is written again.
                            self._stream.synchronize()
                except BaseException as error:  # It is raised in the training thread.
                    self._failure = error
                finally:
                    if isinstance(seen, Snapshot) and seen is not self.good:
                        self._free.put(seen)
                    self._work.task_done()

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        if self._stream is None:
            yield
        else:
            with torch.cuda.device(self._state.device), torch.cuda.stream(self._stream):
                yield
