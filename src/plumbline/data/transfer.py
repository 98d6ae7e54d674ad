"""One file over HTTP: resumed, retried, taken from the next mirror, and verified before it gets its name."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import requests
import tenacity

from plumbline.data.listings import page_title
from plumbline.errors import DataError
from plumbline.files import sha256_file

# What a connection that breaks off loses at most, since a chunk is kept once it is full.
CHUNK = 1 << 16
T = TypeVar("T")
BUSY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Policy:
    """How patiently to retry: attempts in a row without one new byte, waits and timeouts in seconds."""

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    connect_timeout: float = 15.0
    read_timeout: float = 60.0


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: its URLs, best first, and what is known of it beforehand."""

    urls: tuple[str, ...]
    target: Path
    sha256: str | None = None
    size: int | None = None


class _RefusedError(Exception):
    """This URL will not give the file: try the next one."""


class _InterruptedError(Exception):
    """The transfer broke off and may go on where it stopped."""


@dataclass(frozen=True)
class Client:
    """The connections of one fetch, kept open between its files; may be shared by threads."""

    policy: Policy = Policy()
    _local: threading.local = field(default_factory=threading.local)

    def session(self) -> requests.Session:
        """This thread's session: requests does not promise that one may be shared."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        session: requests.Session = self._local.session
        return session


def fetch_file(wanted: Wanted, part: Path, *, client: Client, advance: Callable[[int], None], how_by_hand: str) -> None:
    """Fetch a file to `wanted.target`, by way of `part`, which stays on an interruption and is continued next time.

    Each URL is tried until it fails for good (not found, another size, a wrong hash, an HTML page) or gives no new byte
    in `client.policy.attempts` attempts. DataError with each URL's failure and `how_by_hand` when none gave the file.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in wanted.urls:
        try:
            _fetch_from(url, wanted, part, client=client, advance=advance)
        except _RefusedError as refused:
            failures.append(f"  {url}: {refused}")
            continue
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(wanted.target)
        _validator_path(part).unlink(missing_ok=True)
        return
    tried = "\n".join(failures)
    raise DataError(f"{wanted.target.name} could not be downloaded. Tried:\n{tried}\n{how_by_hand}")


def fetch_page(url: str, *, client: Client) -> tuple[str, str]:
    """Text of a web page and the URL it was found at after redirects; DataError when it cannot be had."""

    def attempt() -> tuple[str, str]:
        with _open(url, {}, client) as response:
            return response.text, response.url

    try:
        return _retrying(client.policy, progress=lambda: 0)(attempt)
    except _RefusedError as refused:
        raise DataError(f"{url}: the directory listing could not be read: {refused}.") from refused


def remote_size(url: str, *, client: Client) -> int | None:
    """Bytes of a file as its server says, None when it does not say or cannot be asked."""
    with contextlib.suppress(_RefusedError, _InterruptedError), _open(url, {}, client) as response:
        return _number(response.headers.get("Content-Length"))
    return None


def _fetch_from(url: str, wanted: Wanted, part: Path, *, client: Client, advance: Callable[[int], None]) -> None:
    """Complete and verify `part` from one URL; a wrong hash of a continued file is given one try from its start."""
    continued = _size(part) > 0
    for fresh in (False, True):
        _complete(url, wanted, part, client=client, advance=advance)
        if wanted.sha256 is None or (digest := sha256_file(part)) == wanted.sha256:
            return
        _forget(part, advance)
        if fresh or not continued:
            raise _RefusedError(f"what it sent has SHA-256 {digest}, expected {wanted.sha256}")


def _complete(url: str, wanted: Wanted, part: Path, *, client: Client, advance: Callable[[int], None]) -> None:
    def attempt() -> None:
        total = _receive(url, wanted, part, client=client, advance=advance)
        if total is not None and (size := _size(part)) != total:
            raise _InterruptedError(f"broke off after {size} of {total} bytes")

    _retrying(client.policy, progress=lambda: _size(part))(attempt)


def _retrying(policy: Policy, *, progress: Callable[[], int]) -> Callable[[Callable[[], T]], T]:
    """Calls a function again on _InterruptedError, with growing waits; attempts that made progress are not counted."""
    best, counted_from = progress(), 0

    def stop(state: tenacity.RetryCallState) -> bool:
        nonlocal best, counted_from
        if (now := progress()) > best:
            best, counted_from = now, state.attempt_number
        return state.attempt_number - counted_from >= policy.attempts

    def give_up(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        raise _RefusedError(f"{error} ({policy.attempts} attempts without a new byte)") from error

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_InterruptedError),
        stop=stop,
        wait=tenacity.wait_exponential_jitter(
            multiplier=policy.first_wait, max=policy.longest_wait, jitter=policy.first_wait / 2
        ),
        retry_error_callback=give_up,
    )


def _receive(url: str, wanted: Wanted, part: Path, *, client: Client, advance: Callable[[int], None]) -> int | None:
    """Append to `part` what the server still has to send, or start over where it cannot continue; the file's size."""
    start = _size(part)
    if start and start == wanted.size:
        return start
    with _open(url, _range_headers(part, start, by_hash=wanted.sha256 is not None), client) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return _past_the_end(response, part, start, advance)
        continues = response.status_code == requests.codes.partial_content
        if continues and _first_byte(response) != start:
            _forget(part, advance)
            raise _InterruptedError("sent another range than asked for")
        total = _total(response, start if continues else 0)
        # Before the part is given up: a quota page must not cost what was fetched earlier.
        _refuse_wrong(response, wanted, total)
        if not continues:
            _forget(part, advance)
        _validator_path(part).write_text(_validator(response))
        _append(response, part, advance)
    return total if total is not None else wanted.size


@contextlib.contextmanager
def _open(url: str, headers: dict[str, str], client: Client) -> Iterator[requests.Response]:
    """A response whose body is not read yet. _RefusedError for what stays so, _InterruptedError for what may pass."""
    policy = client.policy
    try:
        with client.session().get(
            url,
            headers={"Accept-Encoding": "identity", **headers},
            stream=True,
            timeout=(policy.connect_timeout, policy.read_timeout),
        ) as response:
            if response.status_code in BUSY:
                raise _InterruptedError(f"HTTP {response.status_code} {response.reason}")
            if response.status_code >= 400 and response.status_code != 416:
                raise _RefusedError(f"HTTP {response.status_code} {response.reason}")
            yield response
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _InterruptedError(f"{type(error).__name__}: {error}") from error
    except requests.RequestException as error:
        raise _RefusedError(f"{type(error).__name__}: {error}") from error


def _range_headers(part: Path, start: int, *, by_hash: bool) -> dict[str, str]:
    """Ask for the rest; without a hash to tell, only of the same version of the file, or none at all."""
    if not start:
        return {}
    if by_hash:
        return {"Range": f"bytes={start}-"}
    path = _validator_path(part)
    validator = path.read_text() if path.exists() else ""
    return {"Range": f"bytes={start}-", "If-Range": validator} if validator else {}


def _validator(response: requests.Response) -> str:
    tag = response.headers.get("ETag", "")
    return response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


def _validator_path(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _past_the_end(response: requests.Response, part: Path, start: int, advance: Callable[[int], None]) -> int:
    total = _number(response.headers.get("Content-Range", "").rpartition("/")[2])
    if total != start:
        _forget(part, advance)
        raise _InterruptedError(f"the part on disk has {start} bytes, the file {total}: starting over")
    return start


def _refuse_wrong(response: requests.Response, wanted: Wanted, total: int | None) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "text/html" and wanted.target.suffix.lower() not in (".html", ".htm"):
        title = page_title(next(response.iter_content(CHUNK), b"").decode(errors="replace"))
        raise _RefusedError(
            f"answered with a web page ({title!r}) instead of the file, as Google Drive does when a file's quota is "
            "used up or it wants a confirmation"
        )
    if wanted.size is not None and total is not None and total != wanted.size:
        raise _RefusedError(f"has {total} bytes, expected {wanted.size}")


def _append(response: requests.Response, part: Path, advance: Callable[[int], None]) -> None:
    with part.open("ab") as stream:
        for chunk in response.iter_content(CHUNK):
            stream.write(chunk)
            advance(len(chunk))


def _total(response: requests.Response, start: int) -> int | None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    length = _number(response.headers.get("Content-Length"))
    return None if length is None else start + length


def _first_byte(response: requests.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _forget(part: Path, advance: Callable[[int], None]) -> None:
    advance(-_size(part))
    part.unlink(missing_ok=True)
    _validator_path(part).unlink(missing_ok=True)
