"""CPU time of contenders that take turns in one process, and what a benchmark is."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

LONG_ENOUGH = 0.02
MIN_ROUNDS = 5


def nothing() -> None:
    """Nothing to prepare."""


@dataclass(frozen=True)
class Contender:
    """One way of doing the work. `before` runs untimed ahead of each turn; `result` is what the check compares."""

    name: str
    run: Callable[[], object]
    before: Callable[[], None] = nothing


@dataclass(frozen=True)
class Bench:
    """A hot path: ours beside the commonly copied way and, where there is one, what the machine allows at best.

    `check` raises when ours and the peer do not give the same. `target` is the least ratio peer / ours. `rounds` of 0
    means as many as fit the time. `variants` are timed beside and only reported, such as the peer under our allocator.
    `allowed_s` is a limit for ours in seconds, beside the ratio. `work` is what a call gets done, by name, and `memory`
    measures the MB that it takes at its peak: both are reported.
    """

    name: str
    peer: Contender
    ours: Contender
    target: float
    check: Callable[[], None]
    limit: Contender | None = None
    rounds: int = 0
    variants: tuple[Contender, ...] = ()
    allowed_s: float | None = None
    work: dict[str, int] = field(default_factory=dict)
    memory: Callable[[], float] | None = None


@dataclass(frozen=True)
class Measured:
    """Median CPU seconds of each contender, and the verdict. `limit_s` is None where the bench has none."""

    name: str
    peer: str
    peer_s: float
    ours_s: float
    target: float
    limit: str = ""
    limit_s: float | None = None
    variants_s: dict[str, float] = field(default_factory=dict)
    allowed_s: float | None = None
    work: dict[str, int] = field(default_factory=dict)
    memory_mb: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster than the peer."""
        return self.peer_s / self.ours_s

    @property
    def share(self) -> float | None:
        """What part of the possible speed is reached."""
        return None if self.limit_s is None else self.limit_s / self.ours_s

    @property
    def met(self) -> bool:
        """True when the ratio reaches its target and, where there is a limit, the time keeps within it."""
        return self.ratio >= self.target and (self.allowed_s is None or self.ours_s <= self.allowed_s)


def measure(bench: Bench, *, seconds: float) -> Measured:
    """Check that both give the same, then time them in turns for about `seconds` of CPU time each."""
    bench.check()
    contenders = [bench.peer, bench.ours, *([bench.limit] if bench.limit else []), *bench.variants]
    times = take_turns(contenders, seconds=seconds, rounds=bench.rounds)
    return Measured(
        bench.name,
        bench.peer.name,
        times[bench.peer.name],
        times[bench.ours.name],
        bench.target,
        bench.limit.name if bench.limit else "",
        times[bench.limit.name] if bench.limit else None,
        {variant.name: times[variant.name] for variant in bench.variants},
        bench.allowed_s,
        bench.work,
        bench.memory() if bench.memory else None,
    )


def take_turns(contenders: Sequence[Contender], *, seconds: float, rounds: int = 0, seed: int = 0) -> dict[str, float]:
    """Median CPU seconds a call of each contender, by name, over rounds in which each has one turn in random order.

    A turn repeats calls until it is long enough for the clock. Process time and one thread are needed: the wall time of
    several threads is decided by whoever else uses the machine.
    """
    repeats = {contender.name: _repeats(contender) for contender in contenders}
    order, samples = random.Random(seed), {contender.name: list[float]() for contender in contenders}
    while not _done(samples, repeats, seconds=seconds, rounds=rounds):
        for contender in order.sample(contenders, len(contenders)):
            contender.before()
            if repeats[contender.name] > 1:
                # The allocator settles after a change of its settings; a user's second call does not pay for that.
                contender.run()
            samples[contender.name].append(_turn(contender, repeats[contender.name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def _repeats(contender: Contender) -> int:
    """How many calls make a turn; also the warm-up."""
    contender.before()
    first = _turn(contender, 1)
    return 1 if first > 5 * LONG_ENOUGH else max(2, round(LONG_ENOUGH / max(_turn(contender, 1), 1e-7)))


def _turn(contender: Contender, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        contender.run()
    return (time.process_time() - start) / repeats


def _done(samples: dict[str, list[float]], repeats: dict[str, int], *, seconds: float, rounds: int) -> bool:
    count = min(len(values) for values in samples.values())
    if rounds:
        return count >= rounds
    spent = sum(sum(values) * repeats[name] for name, values in samples.items())
    return count >= MIN_ROUNDS and spent >= seconds * len(samples)


def random_indices(count: int, *, seed: int, length: int = 10_000) -> Iterator[int]:
    """Indices below `count` in a random order of its own for each contender: a shared order would help its second reader."""
    generator = random.Random(seed)
    return cycle([generator.randrange(count) for _ in range(length)])
