"""The data check in the page: verdicts, contact sheets, scenes left out. Read from `data/checks/<dataset>`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.config import DatasetConfig
from plumbline.files import read_json
from plumbline.report.numbers import COUNT, SHARE, Number, lookup, pointer
from plumbline.report.pictures import thumbnail

# Sheets of this many scenes are shown, doubtful scenes first: the page stays small on large data sets.
_SHEETS = 6
_ORDER = {"wrong": 0, "cannot tell": 1, "ok": 2}


@dataclass(frozen=True)
class SceneVerdict:
    """One scene: verdict, why, and its numbers (None where nothing overlaps)."""

    scene: str
    verdict: str
    diagnosis: str
    remarks: tuple[str, ...]
    error: Number | None
    overlap: Number | None
    photometric: Number | None
    sheet: str | None


@dataclass(frozen=True)
class DatasetVerdict:
    """All scenes of a data set, doubtful ones first, how many have each verdict, and those left out with the reason.

    `source` says in words where the raw files are from; generated scenes say so.
    """

    dataset: str
    source: str
    is_generated: bool
    counts: Mapping[str, Number]
    scenes: tuple[SceneVerdict, ...]
    quarantine: tuple[tuple[str, str], ...]

    @property
    def total(self) -> int:
        """The number of scenes that were checked."""
        return len(self.scenes)

    @property
    def is_ok(self) -> bool:
        """Whether no scene is wrong."""
        return self.counts["wrong"].value == 0


def read_datasets(root: Path, configs: Mapping[str, DatasetConfig]) -> list[DatasetVerdict]:
    """The verdicts of every data set that was checked."""
    folders = {name: root / "data/checks" / name for name in configs}
    checked = [name for name, folder in folders.items() if (folder / "checks.json").is_file()]
    return [_dataset(name, folders[name], configs[name]) for name in checked]


def _dataset(name: str, folder: Path, config: DatasetConfig) -> DatasetVerdict:
    content, file = read_json(folder / "checks.json"), f"data/checks/{name}/checks.json"
    ordered = sorted(content["scenes"].items(), key=lambda item: (_ORDER[item[1]["verdict"]], _natural(item[0])))
    kind = config.source.kind
    return DatasetVerdict(
        dataset=name,
        source="generated scenes with exact truth" if kind == "synthetic" else f"captures ({kind})",
        is_generated=kind == "synthetic",
        counts={
            verdict: Number(content["verdicts"][verdict], pointer(file, "verdicts", verdict), COUNT)
            for verdict in _ORDER
        },
        scenes=tuple(
            _scene(content, file, scene, folder if rank < _SHEETS else None) for rank, (scene, _) in enumerate(ordered)
        ),
        quarantine=tuple(sorted(config.quarantine.items())),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """A sorting key under which scan2 comes before scan10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _scene(content: Mapping[str, Any], file: str, scene: str, sheets: Path | None) -> SceneVerdict:
    check = content["scenes"][scene]
    numbers = {
        name: lookup(content, file, "scenes", scene, "as_read", name, spec=spec)
        for name, spec in (("error", ".2%"), ("overlap", SHARE), ("photometric", ".2f"))
    }
    sheet = None if sheets is None else sheets / f"{scene}.png"
    return SceneVerdict(
        scene=scene,
        verdict=check["verdict"],
        diagnosis=check["diagnosis"],
        remarks=tuple(check.get("remarks", ())),
        sheet=thumbnail(sheet) if sheet is not None and sheet.is_file() else None,
        **numbers,
    )
