"""Progress of long transfers on stderr: a bar with time left on a terminal, now and then a line elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as Context
from contextlib import contextmanager, nullcontext

Advance = Callable[[int], None]
LINE_EVERY = 10.0


def show(label: str, total: int | None, *, done: int = 0, enabled: bool = True) -> Context[Advance]:
    """A context that yields `advance(bytes)`, safe to call from threads; `done` bytes were there before it began."""
    if not enabled:
        return nullcontext(_ignore)
    return _bar(label, total, done) if sys.stderr.isatty() else lines(label, total, done=done, write=_to_stderr)


def _ignore(_: int) -> None:
    return None


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _bar(label: str, total: int | None, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda count: progress.update(task, advance=count)


@contextmanager
def lines(
    label: str,
    total: int | None,
    *,
    done: int,
    write: Callable[[str], None],
    every: float = LINE_EVERY,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Yields `advance(bytes)`, which writes a line at most once in `every` seconds; one more line ends it."""
    lock, start = threading.Lock(), clock()
    seen, shown = 0, start

    def advance(count: int) -> None:
        nonlocal seen, shown
        with lock:
            seen, now = seen + count, clock()
            if now - shown >= every:
                shown = now
                write(line(label, done + seen, total, new=seen, seconds=now - start))

    yield advance
    write(line(label, done + seen, total, new=seen, seconds=clock() - start))


def line(label: str, done: int, total: int | None, *, new: int, seconds: int | float) -> str:
    """One line of progress: `done` of `total` bytes, `new` of them in `seconds`; the time left where it is known."""
    rate = new / seconds if seconds > 0 else 0.0
    text = f"{label}: {human_bytes(done)}"
    if total:
        text += f" of {human_bytes(total)} ({min(100, 100 * done // total)} %)"
    text += f", {human_bytes(rate)}/s"
    if total and rate > 0 and done < total:
        text += f", {human_time((total - done) / rate)} left"
    return text


def human_bytes(count: int | float) -> str:
    """Bytes in decimal units with three digits, such as "19.0 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_time(seconds: int | float) -> str:
    """A span such as "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
