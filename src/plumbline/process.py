"""What a stage's process asks of the system: end with its parent, memory, open files, a polite stop, and where the root is."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from plumbline.errors import PlumblineError

LOG = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_TWO_GIB = 2**31 - 1
_OPEN_FILES = 65_536


def prepare() -> None:
    """Call once at the start of a stage: the process ends with its parent, keeps freed memory and may open many files.

    Linux only; else no-op.
    """
    end_with_parent()
    keep_freed_memory()
    allow_open_files()


@contextlib.contextmanager
def only_one(path: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`; PlumblineError saying `what` is being done where another process holds it.

    With `patience` (seconds; below 0: without end) a line says so, and the other one is waited for first.
    """
    # Imported late: a stage should start its work at once.
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=0)
    try:
        if not lock.is_locked:
            if patience:
                LOG.warning("%s by another process; waiting for it (%s)", what, path)
            lock.acquire(timeout=patience)
    except Timeout as error:
        raise PlumblineError(f"{what} by another process. Wait for it, or end it first.") from error
    try:
        yield
    finally:
        lock.release()


def end_with_parent(signum: int = signal.SIGTERM) -> bool:
    """Ask the kernel to send `signum` when the parent dies; True where the kernel agreed (Linux).

    Killing only `dvc` would otherwise leave a trainer running, and the next repro would start a second one beside it.
    """
    if not sys.platform.startswith("linux"):
        return False
    parent = os.getppid()
    agreed = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) == 0
    # A parent that died before the call sends nothing any more.
    if agreed and os.getppid() != parent:
        os.kill(os.getpid(), signum)
    return agreed


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks up to 2 GiB instead of returning them to the kernel; True where it agreed.

    Tensors over 32 MB are otherwise mapped, zeroed and unmapped at each use (1.2 to 2.7 times slower). The resident
    size then stays at its peak, so this belongs at the start of a stage and never on import.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    mapped, trimmed = mallopt(_M_MMAP_THRESHOLD, _TWO_GIB), mallopt(_M_TRIM_THRESHOLD, _TWO_GIB)
    return bool(mapped == 1 and trimmed == 1)


def allow_open_files() -> int:
    """Raise the soft limit on open files as far as the hard one and 65,536 allow; returns it (0 where nothing was done).

    Each memory-mapped scene holds two or three files open, so ScanNet's training split passes the usual limit of 1024.
    """
    if not sys.platform.startswith("linux"):
        return 0
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 0
    limit = max(soft, _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


@dataclass
class StopRequest:
    """Whether the process was asked to stop, and by which signal (0 = not asked)."""

    signum: int = 0

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM; empty when nothing was asked."""
        return signal.Signals(self.signum).name if self.signum else ""


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Within the block, SIGTERM and SIGINT only set the yielded request; the old handlers come back afterwards."""
    request = StopRequest()

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum = signum

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def dvc_root(start: Path | None = None) -> Path:
    """The main workspace: $DVC_ROOT, else the nearest folder upwards with `.dvc`, else `start` (default: here).

    In a throw-away experiment clone DVC_ROOT still names the main workspace, where scratch and databases must live.
    """
    here = (start or Path.cwd()).resolve()
    if "DVC_ROOT" in os.environ and start is None:
        return Path(os.environ["DVC_ROOT"]).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)
