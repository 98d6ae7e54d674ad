"""How a long loop shows where it is: a bar on a terminal, a plain line every few seconds in a log."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Show = Callable[[int, Mapping[str, float]], None]


@dataclass
class Plain:
    """Prints one line when `every` seconds have passed since the last one, and at the last step."""

    label: str
    total: int
    start: int = 0
    every: float = 10.0
    stream: Any = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began = self._shown = self.clock()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Print `step`, `values`, the time left and the memory, when a line is due."""
        now = self.clock()
        if now - self._shown < self.every and step < self.total:
            return
        self._shown = now
        print(self.line(step, values, now - self._began), file=self.stream, flush=True)

    def line(self, step: int, values: Mapping[str, float], seconds: float) -> str:
        """One line: `train deltaz: step 120/1000, loss 0.12, 3.1 steps/s, 4 min 43 s left, 1.2 GB`."""
        rate = (step - self.start) / max(seconds, 1e-9)
        left = (self.total - step) / rate if rate > 0 else float("inf")
        parts = [f"step {step}/{self.total}", values_text(values), f"{rate:.3g} steps/s", f"{duration(left)} left"]
        return f"{self.label}: " + ", ".join([*filter(None, parts), f"{memory_gb():.2f} GB"])


@contextlib.contextmanager
def progress(label: str, *, total: int, start: int = 0, stream: Any = None) -> Iterator[Show]:
    """Yields `show(step, values)`. A bar where `stream` (default stderr) is a terminal, plain lines elsewhere."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield Plain(label, total, start, stream=stream).show
        return
    with _bar(label, total, start) as show:
        yield show


@contextlib.contextmanager
def _bar(label: str, total: int, start: int) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=start, values="")

        def show(step: int, values: Mapping[str, float]) -> None:
            bar.update(task, completed=step, values=f"{values_text(values)}, {memory_gb():.2f} GB")

        yield show


def values_text(values: Mapping[str, float]) -> str:
    """`loss 0.123, val 0.0456`: the values to three digits."""
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def duration(seconds: float) -> str:
    """`43 s`, `4 min 43 s` or `3 h 12 min`; `?` when it is not known."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def memory_gb() -> float:
    """Peak memory of this process in GB: of the GPU where torch uses one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
