"""Every hot path beside the commonly copied way, in one process, on one thread, in CPU time: `python benchmarks/run.py`.

Equality is asserted before anything is timed. Prints a table and writes it to benchmarks/results as Markdown and JSON; the
exit status is 1 when a ratio is below its target. Names after the command choose benchmarks by the start of their name; their
rows then take the place of those that were recorded on the same machine with the same libraries.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from timing import Measured, measure

MODULES = ("view_read", "batch_feed", "pfm_read", "metrics", "inverse_warp", "unet_step", "deltas", "vggt", "raster")
RESULTS = Path(__file__).parent / "results"
COLUMNS = ("bench", "peer", "peer time", "ours", "ratio", "target", "at best", "share of it", "")
METHOD = (
    "CPU time of one thread, contenders in turns in one process, medians; ratio = peer / ours. "
    "Ours runs with the allocator setting of the stages, a peer in a plain process."
)


def main() -> int:
    """Run what was asked for; 0 when every target was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks, by the start of their name (default: all)")
    parser.add_argument("--seconds", type=float, default=1.5, help="CPU seconds for each contender")
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    rows = [row(measured) for measured in measurements(arguments.names, seconds=arguments.seconds)]
    rows += [start_row(name) for name in starts(arguments.names)]
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(drawn(rows))
    for line in asides(rows):
        console.print(line, highlight=False, markup=False)
    if recorded := merged(rows) if arguments.names else rows:
        write(recorded)
    return 0 if rows and all(entry["met"] for entry in rows) else 1


def single_thread() -> None:
    """One thread in every library that has its own pool."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def measurements(names: Sequence[str], *, seconds: float) -> Iterator[Measured]:
    """Each chosen benchmark, measured. A module has a process of its own, since what an allocator does depends on its past."""
    spawn = multiprocessing.get_context("spawn")
    for module in (m for m in MODULES if not names or any(m.startswith(n) or n.startswith(m) for n in names)):
        print(f"{module} ...", file=sys.stderr, flush=True)
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            yield from process.submit(measure_module, module, names, seconds=seconds).result()


def measure_module(module: str, names: Sequence[str], *, seconds: float) -> list[Measured]:
    """The chosen benchmarks of one module, in this process, with their files in a folder that is gone afterwards."""
    single_thread()
    with tempfile.TemporaryDirectory() as folder:
        benches = importlib.import_module(module).benches(Path(folder))
        return [measure(bench, seconds=seconds) for bench in benches if chosen(bench.name, names)]


def chosen(name: str, names: Sequence[str]) -> bool:
    """True when no names were given or one of them begins `name`."""
    return not names or name.startswith(tuple(names))


def starts(names: Sequence[str]) -> list[str]:
    """The stages whose start is to be timed."""
    import stage_start

    return [stage for stage in stage_start.LIMITS if chosen(f"stage_start_{stage}", names)]


def row(measured: Measured) -> dict[str, object]:
    """One line of the table as plain values, times in seconds."""
    return {**asdict(measured), "ratio": measured.ratio, "share": measured.share, "met": measured.met}


def start_row(stage: str) -> dict[str, object]:
    """The line of a stage's start: its limit is in seconds, not a ratio."""
    import stage_start

    print(f"stage_start_{stage} ...", file=sys.stderr, flush=True)
    ours, peer = stage_start.start(stage), stage_start.seconds("import torch, mlflow", rounds=3)
    floor, allowed = stage_start.seconds("import numpy"), stage_start.LIMITS[stage]
    measured = Measured(
        f"stage_start_{stage}", "import torch, mlflow", peer, ours, peer / allowed, "import numpy", floor
    )
    return {**row(measured), "allowed_s": allowed}


def texts(entry: dict[str, object]) -> list[str]:
    """The cells of a line."""
    target = f"<= {entry['allowed_s']} s" if entry["allowed_s"] else f">= {entry['target']:g}x"
    at_best = f"{entry['limit']}: {duration(entry['limit_s'])}" if entry["limit"] else "-"
    share = f"{entry['share']:.0%}" if entry["limit"] else "-"
    times = (duration(entry["peer_s"]), duration(entry["ours_s"]), f"{entry['ratio']:.2f}x")
    return [entry["name"], entry["peer"], *times, target, at_best, share, "met" if entry["met"] else "MISSED"]


def duration(seconds: float) -> str:
    """Seconds in a unit that leaves three digits."""
    unit, factor = next(((u, f) for u, f in (("s", 1), ("ms", 1e3)) if seconds * f >= 1), ("µs", 1e6))
    return f"{seconds * factor:.3g} {unit}"


def drawn(rows: Sequence[dict[str, object]]) -> Table:
    """The table for a terminal."""
    table = Table(caption=METHOD, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("bench", "peer", "at best", "") else "right")
    for entry in rows:
        table.add_row(*texts(entry), style=None if entry["met"] else "bold red")
    return table


def asides(rows: Sequence[dict[str, object]]) -> list[str]:
    """What was timed beside, as sentences."""
    return [line for entry in rows for line in beside(entry)]


def beside(entry: dict[str, object]) -> Iterator[str]:
    """What one benchmark has to say besides its row."""
    for name, seconds in entry["variants_s"].items():
        yield f"{entry['name']}: {name}: {duration(seconds)}, {seconds / entry['ours_s']:.2f} times ours."
    for name, count in entry["work"].items():
        yield f"{entry['name']}: {count:,} {name}, {count / entry['ours_s'] / 1e6:.3g} million a second."
    if entry["memory_mb"] is not None:
        yield f"{entry['name']}: {entry['memory_mb']:.0f} MB at its peak, beyond what its process held before."


def machine() -> dict[str, str]:
    """What the times depend on."""
    return {"cpu": cpu_name(), "system": platform.system(), "python": platform.python_version(), **versions()}


def merged(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """The recorded rows with `rows` in the places of those of their names, new ones last; [] when they cannot stand together."""
    recorded = json.loads((RESULTS / "results.json").read_text())
    if recorded["machine"] != machine():
        print("Not recorded: benchmarks/results is of another machine. Without names all are run.", file=sys.stderr)
        return []
    return list({entry["name"]: entry for entry in (*recorded["benchmarks"], *rows)}.values())


def write(rows: Sequence[dict[str, object]]) -> None:
    """Write results.md and results.json."""
    lines = [f"{METHOD} Machine: {', '.join(f'{k} {v}' for k, v in machine().items())}.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(texts(entry)) + " |" for entry in rows]
    lines += ["", *(f"- {line}" for line in asides(rows))]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "results.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "results.json").write_text(json.dumps({"machine": machine(), "benchmarks": list(rows)}, indent=1) + "\n")


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if line.startswith("model name")] if path.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the times."""
    import numpy as np
    import torch

    return {"numpy": np.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(main())
