"""curve.csv: one row for each logged step of a training run, appended as it goes on."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from plumbline.errors import DataError
from plumbline.files import atomic_path


class Curve:
    """Appends rows to a CSV file. Rows of steps behind `after` (of a run that went on past its last checkpoint) go first."""

    def __init__(self, path: Path, *, after: int) -> None:
        self.path = path
        self._columns: list[str] = []
        if path.is_file():
            self._columns, rows = _rows(path)
            kept = [row for row in rows if int(row["step"]) <= after]
            with atomic_path(path) as temporary:
                _write(temporary, self._columns, kept, mode="w", header=True)

    def append(self, row: Mapping[str, float], *, columns: Sequence[str]) -> None:
        """Add `row` (needs a `step`); `columns` are those of the whole file, a value that is not in `row` stays empty."""
        text = {name: f"{value:.9g}" for name, value in row.items()}
        header = not self._columns
        self._columns = self._columns or list(columns)
        _write(self.path, self._columns, [text], mode="a", header=header)


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve.csv as numbers, empty cells left out; DataError when it is absent or not one."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. It is written by training: run that first.")
    columns, rows = _rows(path)
    if "step" not in columns:
        raise DataError(f"{path}: has no column 'step', only {columns}. It is not a training curve.")
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        # A process that was killed while it wrote leaves a last line without its last cells.
        rows = [row for row in reader if None not in row.values()]
        return list(reader.fieldnames or []), rows


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]], *, mode: str, header: bool) -> None:
    with path.open(mode, newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        if header and columns:
            writer.writeheader()
        writer.writerows(rows)
