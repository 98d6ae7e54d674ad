"""Raw files to canonical scenes: the same for every format. A reader yields views; validation, size and writing are here."""

import hashlib
import importlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from plumbline.config import DatasetConfig, parse
from plumbline.data.canonical import FORMAT_VERSION, fit, list_scenes, validate_view, write_scene
from plumbline.errors import ConfigError, DataError, PlumblineError
from plumbline.files import replace_folder
from plumbline.process import end_with_parent, only_one
from plumbline.progress import progress
from plumbline.records import View

_SHOWN = 10


@dataclass(frozen=True)
class Job:
    """What one worker needs to write one scene."""

    dataset: str
    scene: str
    config: DatasetConfig
    raw: Path
    folder: Path


def reader(config: DatasetConfig, dataset: str) -> tuple[ModuleType, Any]:
    """The reader module of a data set's format and its checked options."""
    module = importlib.import_module(f"plumbline.data.{config.format}")
    return module, parse(config.options, module.Options, where=f"datasets.{dataset}.options")


def parse_dataset(
    dataset: str, config: DatasetConfig, *, raw: Path, identity: str, out: Path, scratch: Path
) -> list[str]:
    """Write every scene of a data set below `out` and return their names.

    Scenes are written by a pool of processes into a scratch folder named by a hash of the configuration, the raw files
    (`identity`), the readers' code and the format version: a run that was cut short goes on where it stopped, and `out` appears
    whole. DataError names every scene that is broken and says how to leave it out.
    """
    module, options = reader(config, dataset)
    names = _wanted(dataset, config, module.scenes(raw, options))
    work = scratch / f"parse-{dataset}-{_content_key(config, identity)}"
    work.mkdir(parents=True, exist_ok=True)
    with only_one(work.with_suffix(".lock"), f"{dataset} is being parsed"):
        jobs = [Job(dataset, name, config, raw, work / name) for name in names]
        _write_all(dataset, [job for job in jobs if not (job.folder / "scene.json").exists()])
        _drop_others(work, list_scenes(work), names)
        replace_folder(work, out)
    return names


def _wanted(dataset: str, config: DatasetConfig, found: list[str]) -> list[str]:
    unknown = sorted(set(config.quarantine) - set(found))
    if unknown:
        raise ConfigError(
            f"params.yaml: datasets.{dataset}.quarantine names {', '.join(unknown)}, which is no scene. "
            f"There is: {', '.join(found[:_SHOWN])}{' …' if len(found) > _SHOWN else ''}."
        )
    return [name for name in found if name not in config.quarantine]


def _content_key(config: DatasetConfig, identity: str) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {config.model_dump_json()} {identity}".encode())
    for code in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(code.read_bytes())
    return digest.hexdigest()[:16]


def _write_all(dataset: str, jobs: list[Job]) -> None:
    if not jobs:
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed

    failures: dict[str, str] = {}
    workers = min(len(jobs), os.cpu_count() or 1)
    with (
        ProcessPoolExecutor(workers, initializer=end_with_parent) as pool,
        progress(f"parse {dataset}", total=len(jobs)) as show,
    ):
        pending = {pool.submit(write_one, job): job.scene for job in jobs}
        for done, future in enumerate(as_completed(pending), start=1):
            if isinstance(error := future.exception(), PlumblineError):
                failures[pending[future]] = str(error)
            else:
                future.result()
            show(done, {})
    if failures:
        raise DataError(_broken(dataset, failures, len(jobs)))


def _broken(dataset: str, failures: dict[str, str], total: int) -> str:
    lines = [f"  {message}" for _, message in sorted(failures.items())[:_SHOWN]]
    more = f"\n  … and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    return (
        f"{dataset}: {len(failures)} of {total} scenes cannot be read:\n" + "\n".join(lines) + more + "\n"
        f"Mend the files, or leave scenes out under datasets.{dataset}.quarantine in params.yaml (name: reason)."
    )


def write_one(job: Job) -> int:
    """Write one canonical scene and return the number of its views."""
    logging.basicConfig(format="%(message)s")
    module, options = reader(job.config, job.dataset)
    listed = module.samples(job.raw, job.scene, options) if hasattr(module, "samples") else None
    return write_scene(
        job.folder,
        dataset=job.dataset,
        name=job.scene,
        views=_fitted(module.views(job.raw, job.scene, options), job),
        depth_range=job.config.depth_range,
        pairs=module.pairs(job.raw, job.scene, options),
        storage=job.config.storage,
        source={"format": job.config.format, "options": options.model_dump(mode="json")},
        samples=listed,
    )


def _fitted(views: Iterator[View], job: Job) -> Iterator[View]:
    for view in views:
        # Checked at the size it was read in: a K of another resolution could fit by chance afterwards.
        validate_view(view, f"{job.dataset}/{job.scene} view {view.name}")
        yield fit(view, job.config.image_size, resize=job.config.resize)


def _drop_others(work: Path, present: list[str], wanted: list[str]) -> None:
    for name in set(present) - set(wanted):
        shutil.rmtree(work / name)
