"""A stage's process: it ends with its parent, keeps freed memory, and is stopped politely."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plumbline.process import stop_on_signal

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")
ENV = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}


@linux
def test_a_process_ends_when_its_parent_is_killed():
    child = "import signal; from plumbline.process import end_with_parent; print(end_with_parent(), flush=True); signal.pause()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env=ENV, text=True)
    assert process.stdout.readline() == "True\n"
    process.kill()
    # The pipe closes when its last writer, the child, has ended; a child that lives on would block here.
    assert process.stdout.read() == ""
    assert process.wait() == -signal.SIGKILL


@linux
def test_freed_memory_stays():
    code = (
        "import numpy as np, psutil\nfrom plumbline.process import keep_freed_memory\n"
        "kept = keep_freed_memory()\nx = np.ones(2**24)\ndel x\nprint(kept, psutil.Process().memory_info().rss > 2**27)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENV)
    assert done.stdout.split() == ["True", "True"]


@linux
def test_many_files_may_be_open():
    code = (
        "import resource\nfrom plumbline.process import allow_open_files\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\nresource.setrlimit(resource.RLIMIT_NOFILE, (40, min(hard, 300)))\n"
        "limit = allow_open_files()\nopened = [open('/dev/null') for _ in range(100)]\nprint(limit)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENV)
    assert done.stdout == "300\n"


def test_signals_are_noted_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as request:
        assert request.name == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert (request.signum, request.name) == (signal.SIGTERM, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is before
