"""CPU time until a stage starts work: interpreter, imports, parameters."""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"parse": 0.35, "evaluate": 0.8}
START = """
import runpy, sys
from plumbline.process import prepare
from plumbline.config import load_params
prepare()
runpy.run_path("stages/{stage}.py", run_name="started")
load_params()
"""


def seconds(code: str, *, rounds: int = 7) -> float:
    """Median CPU seconds, user and system, of a Python process that runs `code` in the project's root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    samples = []
    for _ in range(rounds + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        samples.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # The first one also reads the files from the disk.
    return statistics.median(samples[1:])


def start(stage: str) -> float:
    """CPU seconds until `stages/<stage>.py` has imported what it needs and read params.yaml."""
    return seconds(START.format(stage=stage))
