"""Fetch a data set's raw files, whatever their source, and list them with their hashes.

Beside each raw folder lies `<folder>.work`: parts of unfinished transfers, archives not yet unpacked, the lock, and the
record of what is complete. Deleting it loses no data, only the knowledge that nothing has to be done.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from plumbline.data import progress as progress_display
from plumbline.data.archives import unpack, unpacked_size
from plumbline.data.listings import parse_listing
from plumbline.data.manifest import Manifest, Stamp, from_stamps, list_files, read_manifest, stamp_files, verify
from plumbline.data.manifest import write_manifest as write_manifest
from plumbline.data.sources import (
    Archive,
    Folder,
    RemoteFile,
    Source,
    Synthetic,
    Terms,
    Tree,
    fingerprint,
    identity,
    may_contain,
    raw_folder,
    work_folder,
)
from plumbline.data.sources import matches as path_matches
from plumbline.data.transfer import Client, Wanted, fetch_file, fetch_page, remote_size
from plumbline.errors import ConfigError, DataError
from plumbline.files import atomic_folder, read_json, sha256_file, write_json
from plumbline.process import only_one

__all__ = ["Manifest", "Source", "fetch", "raw_folder", "read_manifest", "verify", "write_manifest"]

LOG = logging.getLogger(__name__)
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".rar")
SPARE_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Job:
    """One data set's fetch: where its files go, what an earlier fetch left, and how to talk to servers and users."""

    dataset: str
    folder: Path
    work: Path
    known: Mapping[str, Stamp]
    client: Client
    progress: bool


def fetch(dataset: str, source: Source, *, root: Path, progress: bool = True, client: Client | None = None) -> Manifest:
    """Bring the raw files of a data set to `raw_folder(...)` and list them.

    What an earlier call fetched completely is neither fetched nor hashed again; what was cut short is continued. A
    `folder` source is only read. DataError says what failed and how to go on; two calls at once take turns.
    """
    if isinstance(source, Terms):
        raise DataError(_terms_message(dataset, source))
    folder, work = raw_folder(dataset, source, root=root), work_folder(dataset, source, root=root)
    work.mkdir(parents=True, exist_ok=True)
    with only_one(work / "lock", f"{dataset}: these files are being fetched", patience=-1.0):
        complete, known = _read_record(work)
        state = fingerprint(_state(dataset, source))
        job = Job(dataset, folder, work, known, client or Client(), progress)
        if complete != state or not known or not all(stamp.fits(folder / path) for path, stamp in known.items()):
            _bring(source, job)
        stamps = stamp_files(folder, _names(dataset, source, folder), known=known)
        write_json(work / "record.json", {"complete": state, "files": {k: asdict(v) for k, v in stamps.items()}})
    return from_stamps(dataset, identity(source), stamps)


def _bring(source: Source, job: Job) -> None:
    match source:
        case Synthetic():
            _generate(source, job)
        case Archive():
            _fetch_archives(source, job)
        case Tree():
            _fetch_tree(source, job)


def _names(dataset: str, source: Source, folder: Path) -> list[str]:
    patterns = source.patterns if isinstance(source, Folder) else ("**",)
    if not folder.is_dir():
        raise DataError(f"{dataset}: {folder} is no folder. Check datasets.{dataset}.source.path in params.yaml.")
    if not (names := list_files(folder, patterns)):
        raise DataError(
            f"{dataset}: {folder} holds no file that matches {list(patterns)}. Check datasets.{dataset}.source in "
            "params.yaml: the path must be the data set's top folder."
        )
    return names


def _terms_message(dataset: str, source: Terms) -> str:
    return (
        f"{dataset}: these files may only be had after agreeing to their terms of use at {source.url}. {source.steps} "
        f"Then set datasets.{dataset}.source to {{kind: folder, path: <your copy>}} in params.yaml: it is read in "
        "place and never written to."
    )


def _state(dataset: str, source: Source) -> dict[str, Any]:
    """What makes an earlier fetch stale: the source and, for generated files, the generator and its defaults."""
    if not isinstance(source, Synthetic):
        return identity(source)
    from plumbline.data import synthetic

    settings = _generator_config(dataset, source).model_dump(mode="json")
    code = sorted(Path(synthetic.__file__).parent.rglob("*.py"))
    return {"settings": settings, "generator": [sha256_file(path) for path in code]}


def _generator_config(dataset: str, source: Synthetic) -> Any:
    from plumbline.data import synthetic

    try:
        return synthetic.Config.model_validate(source.settings)
    except ValidationError as error:
        where = f"datasets.{dataset}.source.settings"
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{where} in params.yaml: {told}.") from error


def _generate(source: Synthetic, job: Job) -> None:
    from plumbline.data import synthetic

    with atomic_folder(job.folder) as temporary:
        synthetic.generate(_generator_config(job.dataset, source), temporary, progress=partial(_tell, job))


def _tell(job: Job, scene: str) -> None:
    if job.progress:
        LOG.info("%s: made %s", job.dataset, scene)


def _read_record(work: Path) -> tuple[str | None, dict[str, Stamp]]:
    path = work / "record.json"
    if not path.exists():
        return None, {}
    record = read_json(path)
    return record["complete"], {name: Stamp(**stamp) for name, stamp in record["files"].items()}


def _require_space(job: Job, needed: int) -> None:
    free = shutil.disk_usage(job.work).free
    if free < needed + SPARE_BYTES:
        raise DataError(
            f"{job.dataset}: {progress_display.human_bytes(needed)} are needed under {job.folder.parent}, "
            f"{progress_display.human_bytes(free)} are free. Free some space or put that folder on another disk; "
            "what was fetched already is kept."
        )


def _by_hand(job: Job, target: Path, url: str) -> str:
    return (
        f"By hand: fetch {url} with a browser, put it at {target} and run "
        f'"dvc repro -f download@{job.dataset}" again: it is verified and used as it is.'
    )


# Archives


def _fetch_archives(source: Archive, job: Job) -> None:
    missing = [file for file in source.files if not _is_done(file, job)]
    here = {file.name for file in missing if _is_usable(_download_target(file, source, job), file, job)}
    sizes = {file.name: _bytes(file, source, job, here=file.name in here) for file in missing}
    _require_space(job, sum(_bytes_needed(f, source, job, size=sizes[f.name], here=f.name in here) for f in missing))
    for file in missing:
        target = _download_target(file, source, job)
        if file.name not in here:
            _download(file, target, job, size=sizes[file.name])
        written = _unpack_into_place(file, target, job) if _is_unpacked(file, source) else _sizes(job.folder, [target])
        write_json(_marker(file, job), {"from": file.sha256 or file.url, "into": file.into, "files": written})
        if _is_unpacked(file, source) and not source.keep_archives:
            target.unlink()


def _is_unpacked(file: RemoteFile, source: Archive) -> bool:
    return source.unpack and file.name.lower().endswith(ARCHIVES)


def _download_target(file: RemoteFile, source: Archive, job: Job) -> Path:
    inside = job.work / "downloads" if _is_unpacked(file, source) else job.folder / file.into
    return inside / file.name


def _marker(file: RemoteFile, job: Job) -> Path:
    return job.work / "done" / f"{file.name}.json"


def _is_done(file: RemoteFile, job: Job) -> bool:
    """True when the marker, written last, is there and each file it lists still is what was written."""
    marker = _marker(file, job)
    if not marker.exists():
        return False
    done = read_json(marker)
    sizes: dict[str, int] = done["files"]
    changed = (path for path in sizes if not _is_as_written(path, sizes[path], job))
    return (done["from"], done["into"]) == (file.sha256 or file.url, file.into) and next(changed, None) is None


def _is_as_written(path: str, size: int, job: Job) -> bool:
    if path in job.known:
        return job.known[path].fits(job.folder / path)
    return (job.folder / path).is_file() and (job.folder / path).stat().st_size == size


def _is_usable(path: Path, file: RemoteFile, job: Job) -> bool:
    """True for a copy that is there already, put by a user or an earlier run, and is what was asked for."""
    if not path.is_file():
        return False
    recorded = job.known.get(str(PurePosixPath(file.into, file.name))) if path.is_relative_to(job.folder) else None
    if recorded is not None and not recorded.fits(path):
        LOG.warning("%s: changed since it was fetched: it is fetched again", path)
        return False
    if file.size is not None and path.stat().st_size != file.size:
        LOG.warning("%s: has %d bytes, expected %d: it is fetched again", path, path.stat().st_size, file.size)
        return False
    if file.sha256 is not None and sha256_file(path) != file.sha256:
        LOG.warning("%s: its SHA-256 is not the expected one: it is fetched again", path)
        return False
    return True


def _bytes(file: RemoteFile, source: Archive, job: Job, *, here: bool) -> int | None:
    if here:
        return _download_target(file, source, job).stat().st_size
    return file.size or remote_size(file.url, client=job.client)


def _bytes_needed(file: RemoteFile, source: Archive, job: Job, *, size: int | None, here: bool) -> int:
    """Bytes still to come plus those of the unpacked files, which are taken for the archive's own where not said."""
    part = _part(file.name, job)
    rest = 0 if here else max(0, (size or 0) - (part.stat().st_size if part.exists() else 0))
    return rest + ((file.unpacked_size or size or 0) if _is_unpacked(file, source) else 0)


def _part(name: str, job: Job) -> Path:
    return job.work / "parts" / f"{name}.part"


def _download(file: RemoteFile, target: Path, job: Job, *, size: int | None) -> None:
    part, urls = _part(file.name, job), (file.url, *file.mirrors)
    done = part.stat().st_size if part.exists() else 0
    wanted = Wanted(urls, target, sha256=file.sha256, size=file.size)
    with progress_display.show(file.name, size, done=done, enabled=job.progress) as advance:
        by_hand = _by_hand(job, target, file.url)
        fetch_file(wanted, part, client=job.client, advance=advance, how_by_hand=by_hand)
    if file.sha256 is None:
        LOG.warning("%s: no sha256 in params.yaml; this copy has %s", file.name, sha256_file(target))


def _unpack_into_place(file: RemoteFile, archive: Path, job: Job) -> dict[str, int]:
    """Unpack beside the raw folder, then move the files in; the caller's marker says that all of them have arrived."""
    _require_space(job, unpacked_size(archive))
    with atomic_folder(job.work / "unpacked" / file.name) as temporary:
        unpack(archive, temporary)
    unpacked = job.work / "unpacked" / file.name
    names = list_files(unpacked)
    _refuse_overlap(file, names, job)
    targets = [job.folder / file.into / name for name in names]
    for name, target in zip(names, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).replace(target)
    shutil.rmtree(unpacked)
    return _sizes(job.folder, targets)


def _refuse_overlap(file: RemoteFile, names: list[str], job: Job) -> None:
    mine = {str(PurePosixPath(file.into, name)) for name in names}
    for marker in sorted((job.work / "done").glob("*.json")):
        both = mine & set(read_json(marker)["files"])
        if both and marker != _marker(file, job):
            raise DataError(
                f"{job.dataset}: {file.name} and {marker.stem} both hold {min(both)}. Give one of them another folder "
                f"with `into` under datasets.{job.dataset}.source.files."
            )


def _sizes(folder: Path, paths: list[Path]) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


# Directory listings


def _fetch_tree(source: Tree, job: Job) -> None:
    listed = _crawl_any(source, job)
    missing = {path: size for path, size in listed.items() if not _is_current(path, job)}
    _require_space(job, sum(missing.values()))
    total, done = sum(listed.values()), sum(listed[path] for path in listed if path not in missing)
    with (
        progress_display.show(job.dataset, total or None, done=done, enabled=job.progress) as advance,
        ThreadPoolExecutor(source.connections) as pool,
    ):
        transfers = [pool.submit(_fetch_listed, path, source, job, advance) for path in missing]
        _finish(pool, transfers)


def _is_current(path: str, job: Job) -> bool:
    """True for a file that came whole, since only whole files get their name, and has not changed since."""
    known = job.known.get(path)
    return (job.folder / path).is_file() if known is None else known.fits(job.folder / path)


def _finish(pool: ThreadPoolExecutor, transfers: list[Future[None]]) -> None:
    try:
        for transfer in transfers:
            transfer.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _fetch_listed(path: str, source: Tree, job: Job, advance: progress_display.Advance) -> None:
    urls = tuple(_below(base, path) for base in (source.url, *source.mirrors))
    part = _part(f"{fingerprint(path)[:16]}-{PurePosixPath(path).name}", job)
    by_hand = _by_hand(job, job.folder / path, urls[0])
    fetch_file(Wanted(urls, job.folder / path), part, client=job.client, advance=advance, how_by_hand=by_hand)


def _below(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{quote(path)}"


def _crawl_any(source: Tree, job: Job) -> dict[str, int]:
    """Paths and rough sizes of the wanted files, from the first mirror whose listings can be read."""
    failures = []
    for base in (source.url, *source.mirrors):
        try:
            listed = {path: size for inner in source.folders for path, size in _crawl(base, inner, source, job)}
        except DataError as error:
            failures.append(f"  {error}")
            continue
        if listed:
            return listed
        failures.append(f"  {base}: nothing in {list(source.folders)} matches {list(source.include)}.")
    tried = "\n".join(failures)
    raise DataError(f"{job.dataset}: no files to fetch. Check datasets.{job.dataset}.source in params.yaml.\n{tried}")


def _crawl(base: str, top: str, source: Tree, job: Job) -> Iterator[tuple[str, int]]:
    """Each wanted file below one folder, reading only the listings that can lead to one."""
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        html, url = fetch_page(_below(base, str(PurePosixPath(top, inner))) + "/", client=job.client)
        for entry in parse_listing(html, url=url):
            path = f"{inner}{entry.name}"
            if entry.is_folder and any(may_contain(path, pattern) for pattern in source.include):
                waiting.append(f"{path}/")
            elif not entry.is_folder and any(path_matches(path, pattern) for pattern in source.include):
                yield str(PurePosixPath(top, path)), entry.size or 0
