"""Where a run's time goes, as a page: one update, the gaps in it, side work, the first minute."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gnfast.io.numbers import number
from gnfast.runs.drawing import colour, drawing, svg
from gnfast.runs.page import Html, card, element, embedded, section, table, write_page
from gnfast.runs.record import Record, read_run
from gnfast.runs.run_page import duration
from gnfast.runs.timeline import Gap, Part, Span, own_times, shared_times, totals

if TYPE_CHECKING:
    from gnfast.train.spent import Entry

SLOWEST, GAPS = 20, 5
# Of a kernel's name with all its template arguments.
NAME = 160
# Shorter gaps are the time from one kernel to the next that nothing waits for.
GAP_NS = 5_000


@dataclass(frozen=True)
class Window:
    """Updates that were profiled, and as many before them that were timed without the profiler.

    Attributes:
        first, last: those that were profiled.
        seconds: of one update without the profiler, with all that is done between two.
        host_seconds: of it, what the training thread was inside the update.
        spans: kernels, or operations of the CPU.
        begin, end: of the window, in the spans' nanoseconds.
        thread: the lane of the training thread, of which the operations are shown; None where spans are kernels.
    """

    first: int
    last: int
    seconds: float
    host_seconds: float
    spans: Sequence[Span]
    begin: int
    end: int
    thread: int | None

    @property
    def updates(self) -> int:
        return self.last - self.first + 1


def write_profile(
    run_dir: Path,
    window: Window | None,
    begun: "Mapping[str, Entry]",
    side: "Mapping[str, Entry]",
    graph: Mapping[str, float],
    seconds: float,
    updates: int,
) -> Path:
    """Writes RUN/profile.html.

    Args:
        run_dir: the run folder.
        window: the updates that were profiled; None if there are none.
        begun: what the session's start took, in its order.
        side: what its side work has taken so far.
        graph: what `CapturedStep.seconds` says.
        seconds: those since the first update began.
        updates: the session's, so far.

    Raises:
        RunError: no run folder.
    """
    record = read_run(run_dir)
    return write_page(
        run_dir / "profile.html",
        f"{record.preset}: where the time goes",
        _heading(record, window),
        *(_of_window(window) if window else ()),
        section("Side work", _side_work(side, seconds, updates)),
        section("The first minute", _first_minute(begun, graph)),
    )


def _heading(record: Record, window: Window | None) -> Html:
    session = record.sessions[-1] if record.sessions else {}
    names = ("device_name", "device", "precision", "threads", "torch", "gnfast")
    told = [f"{name.replace('_', ' ')} {session[name]}" for name in names if name in session]
    which = "no updates were profiled"
    if window:
        what = "kernels of the GPU" if window.thread is None else "operations of the CPU"
        which = f"updates {window.first:,} to {window.last:,} were profiled; {what}"
    return element(
        "header",
        element("h1", f"{record.preset}: where the time goes"),
        element("p", which),
        element("p", " · ".join(told), class_="soft"),
        element("p", f"{record.folder}", class_="soft"),
    )


def _of_window(window: Window) -> Iterable[Html]:
    on_gpu, gaps = window.thread is None, []
    if on_gpu:
        parts, gaps = shared_times(window.spans, window.begin, window.end)
    else:
        parts = own_times(window.spans, window.thread, window.begin, window.end)
    idle = sum(gap.length for gap in gaps)
    kinds = {kind: float(total.time) for kind, total in totals(parts, "kind").items()}
    shown = {**kinds, "gaps": float(idle)} if on_gpu else kinds
    profiled = (window.end - window.begin) / window.updates / 1e9
    cards = [
        card("One update", _ms(window.seconds), f"{number(1 / window.seconds)} per second, without the profiler"),
        card("Training thread", _ms(window.host_seconds), "of it inside the update"),
        card("With the profiler", _ms(profiled), f"{profiled / window.seconds - 1:+.0%}; shares are of this"),
    ]
    if on_gpu:
        cards.insert(1, card("Gaps", f"{idle / (window.end - window.begin):.1%}", "of the time no kernel ran"))
    yield section("One update", element("div", *cards, class_="grid"))
    yield section("By kind", _bar("share of the time", shown), _kinds(parts, idle, window))
    if on_gpu:
        yield section("Gaps", _gaps(gaps, window))
    what = "kernels" if on_gpu else "operations, each without those inside it"
    yield section(f"The {SLOWEST} slowest {what}", _slowest(parts, window))


def _kinds(parts: Sequence[Part], idle: int, window: Window) -> Html:
    rows = [
        (kind, *_amounts(total.time, window), number(total.times / window.updates))
        for kind, total in totals(parts, "kind").items()
    ]
    if window.thread is None:
        rows.append(("gaps", *_amounts(idle, window), ""))
    rows.append(("together", *_amounts(window.end - window.begin, window), ""))
    return table(("kind", "ms per update", "share", "times per update"), rows, [len(rows) - 1])


def _slowest(parts: Sequence[Part], window: Window) -> Html:
    kinds = {part.name: part.kind for part in parts}
    rows = [
        (
            name[:NAME],
            kinds[name],
            *_amounts(total.time, window),
            number(total.times / window.updates),
            number(float(total.time) / total.times / 1e3),
        )
        for name, total in list(totals(parts, "name").items())[:SLOWEST]
    ]
    return table(("name", "kind", "ms per update", "share", "times per update", "µs each"), rows)


def _gaps(gaps: Sequence[Gap], window: Window) -> Html:
    long = sorted((gap for gap in gaps if gap.length > GAP_NS), key=lambda gap: -gap.length)
    share = sum(gap.length for gap in long) / (window.end - window.begin)
    said = f"{number(len(gaps) / window.updates)} per update; {number(len(long) / window.updates)} of them are longer "
    said += f"than {GAP_NS / 1e3:g} µs and take {share:.1%} of the time"
    rows = [
        (f"{gap.length / 1e3:,.1f}", gap.after[:NAME] or "the start", gap.before[:NAME] or "the end")
        for gap in long[:GAPS]
    ]
    return element("div", element("p", said), table(("longest, µs", "after", "before"), rows) if rows else "")


def _side_work(side: "Mapping[str, Entry]", seconds: float, updates: int) -> Html | None:
    rows = [
        (
            name,
            f"{one.times:,}",
            *(number(s) for s in (one.here, one.elsewhere)),
            number(1e3 * (one.here + one.elsewhere) / one.times),
        )
        for name, one in sorted(side.items(), key=lambda item: -item[1].here - item[1].elsewhere)
    ]
    if not rows:
        return None
    here = sum(one.here for one in side.values())
    share, rate = here / max(seconds, 1e-9), 1e3 * here / max(updates, 1)
    said = f"{number(here)} s on the training thread in {updates:,} updates, which took {duration(seconds)} with it: "
    said += f"{share:.1%} of the time, {number(rate)} s per 1,000 updates"
    head = ("work", "times", "s on the training thread", "s on others", "ms each")
    return element("div", element("p", said), table(head, rows))


def _first_minute(begun: "Mapping[str, Entry]", graph: Mapping[str, float]) -> Html | None:
    seconds = {name: one.here for name, one in begun.items()}
    if not seconds:
        return None
    rows = [(name, f"{took:.3f}") for name, took in seconds.items()]
    rows += [("together", f"{sum(seconds.values()):.3f}")]
    parts = [
        _bar("seconds from the command to the end of the first update", seconds),
        table(("part", "s"), rows, [len(rows) - 1]),
    ]
    if graph:
        said = ", ".join(f"{name} {took:.3f} s" for name, took in graph.items())
        parts.append(element("p", f"CUDA graph: {said}; Triton's time is a part of the others"))
    return element("div", *parts)


def _ms(seconds: float) -> str:
    return f"{number(1e3 * seconds)} ms"


def _amounts(nanoseconds: float, window: Window) -> tuple[str, str]:
    """Milliseconds per update, and the share of the window."""
    return number(float(nanoseconds) / window.updates / 1e6), f"{float(nanoseconds) / (window.end - window.begin):.1%}"


def _bar(title: str, parts: Mapping[str, float]) -> Html:
    """A figure with a title, a legend and one bar that is divided as the parts are."""
    from matplotlib.figure import Figure

    whole = sum(parts.values())
    drawn = {name: size / whole for name, size in parts.items() if size > 0} if whole > 0 else {}
    legend = [
        element("span", element("i", style=f"background: {colour(index)}"), f"{name} {share:.1%}")
        for index, (name, share) in enumerate(drawn.items())
    ]
    with drawing():
        figure = Figure(figsize=(8.5, 0.5))
        axes = figure.subplots(gridspec_kw={"left": 0, "bottom": 0, "right": 1, "top": 1})
        axes.set(xlim=(0, 1), ylim=(-0.5, 0.5))
        axes.axis("off")
        at = 0.0
        for index, share in enumerate(drawn.values()):
            axes.barh(0, share, 1, at, color=colour(index), gid=f"part-{index}")
            at += share
        image = embedded(svg(figure), "image/svg+xml", title, class_="plot")
    return element("figure", element("figcaption", element("b", title), *legend), image)
