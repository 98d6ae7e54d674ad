"""The index of AerialMegaDepth: which images belong to which scene, and which of them are pairs, with their scores.

An index is an .npz file with `scenes` (names), `images` (tags, None where a number is not used), `images_scene_name` (the
scene of each image) and `pairs`: records of scene_id, im1_id, im2_id, score, or rows of those four. Image numbers are places
in `images`. In merged files scene numbers may belong to another list: the scene of an image is what `images_scene_name` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from plumbline.data.npz import read_npz
from plumbline.errors import DataError

_FIELDS = ("scene_id", "im1_id", "im2_id", "score")
_KEYS = ("images", "images_scene_name", "pairs")
_ADVICE = "Fetch the index again, or make it again with the tool that wrote it."


@dataclass(frozen=True)
class Index:
    """One index file: tag and scene of each image by number ("" where none), and its pairs with their rows in the file."""

    path: Path
    tags: Shaped[np.ndarray, " m"]
    scenes: Shaped[np.ndarray, " m"]
    first: Int64[np.ndarray, " k"]
    second: Int64[np.ndarray, " k"]
    score: Float64[np.ndarray, " k"]

    def tags_of(self, scene: str) -> list[str]:
        """Tags of the images of a scene that are in a pair, by number."""
        # Once an image, not once a pair: there are a hundred thousand images, but millions of pairs.
        used = np.zeros(len(self.tags), bool)
        used[self.first] = used[self.second] = True
        return [str(tag) for tag in self.tags[used & (self.scenes == scene)]]

    def pairs_of(self, scene: str) -> list[tuple[str, str, float]]:
        """(tag, tag, score) of each pair of a scene, in the file's order."""
        rows = np.flatnonzero((self.scenes == scene)[self.first])
        first, second = self.tags[self.first[rows]], self.tags[self.second[rows]]
        return [(str(a), str(b), float(c)) for a, b, c in zip(first, second, self.score[rows], strict=True)]

    def scene_names(self) -> list[str]:
        """Names of the scenes that have a pair, sorted."""
        used = np.zeros(len(self.tags), bool)
        used[self.first] = True
        return [str(name) for name in np.unique(self.scenes[used])]


def read_index(path: Path, *, rows: Sequence[int] | None = None, across: Literal["error", "drop"] = "error") -> Index:
    """An index file, or only these `rows` of its pairs; object arrays may hold strings, numbers and None alone.

    DataError for a missing key, a pair that names an image the index does not have, a score that is no number, and pairs whose
    images are in different scenes, unless `across` drops them.
    """
    arrays = read_npz(path)
    absent = [key for key in _KEYS if key not in arrays]
    if absent:
        raise DataError(
            f"{path}: no {', '.join(absent)}, only {', '.join(arrays)}; expected an index with {', '.join(_KEYS)}. {_ADVICE}"
        )
    tags, scenes = (_names(arrays[key]) for key in ("images", "images_scene_name"))
    if tags.shape != scenes.shape:
        raise DataError(
            f"{path}: {len(tags)} images, but {len(scenes)} images_scene_name; expected one each. {_ADVICE}"
        )
    first, second, score = _pairs(arrays["pairs"], rows, path)
    index = Index(path, tags, scenes, first, second, score)
    _validate(index, rows)
    _, number = np.unique(scenes, return_inverse=True)
    apart = number[first] != number[second]
    if apart.any() and across == "error":
        raise DataError(_across(index, apart, rows))
    return Index(path, tags, scenes, first[~apart], second[~apart], score[~apart])


def _names(values: Shaped[np.ndarray, " m"]) -> Shaped[np.ndarray, " m"]:
    if values.dtype == object:
        values = np.array(["" if value is None else str(value) for value in values.ravel()], dtype=np.str_)
    return values.astype(np.str_).ravel()


def _pairs(
    stored: Shaped[np.ndarray, "..."], rows: Sequence[int] | None, path: Path
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Numbers of the first and the second image, and scores, of the records or rows of `pairs`."""
    if stored.dtype.names is not None and set(_FIELDS) <= set(stored.dtype.names):
        columns = [stored[field].ravel() for field in _FIELDS]
    elif stored.dtype.names is None and stored.ndim == 2 and stored.shape[1] == len(_FIELDS):
        columns = list(stored.T)
    else:
        got = stored.dtype.names or f"shape {stored.shape}"
        raise DataError(
            f"{path}: pairs are {got}; expected records of {', '.join(_FIELDS)} or rows of those. {_ADVICE}"
        )
    if rows is not None:
        outside = [row for row in rows if not 0 <= row < len(columns[0])]
        if outside:
            raise DataError(f"{path}: pair {outside[0]} was asked for, but it has {len(columns[0])} pairs, from 0.")
        columns = [column[list(rows)] for column in columns]
    try:
        return columns[1].astype(np.int64), columns[2].astype(np.int64), columns[3].astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: pairs hold what is no number ({error}); expected image numbers and a score. {_ADVICE}"
        ) from error


def _validate(index: Index, rows: Sequence[int] | None) -> None:
    ids = np.stack([index.first, index.second])
    outside = (ids < 0) | (ids >= len(index.tags))
    if outside.any():
        row = int(np.flatnonzero(outside.any(axis=0))[0])
        named = int(ids[outside[:, row], row][0])
        raise DataError(
            f"{index.path}: pair {_row(row, rows)} names image {named}, but there are images 0..{len(index.tags) - 1}. {_ADVICE}"
        )
    empty = ((index.tags == "") | (index.scenes == ""))[ids]
    if empty.any():
        row = int(np.flatnonzero(empty.any(axis=0))[0])
        named = int(ids[empty[:, row], row][0])
        raise DataError(
            f"{index.path}: pair {_row(row, rows)} names image {named}, which the index leaves empty. {_ADVICE}"
        )
    if not np.isfinite(index.score).all():
        row = int(np.flatnonzero(~np.isfinite(index.score))[0])
        raise DataError(
            f"{index.path}: the score of pair {_row(row, rows)} is {index.score[row]}; expected a number. {_ADVICE}"
        )


def _across(index: Index, apart: Bool[np.ndarray, " k"], rows: Sequence[int] | None) -> str:
    row = int(np.flatnonzero(apart)[0])
    names = [f"{index.tags[i]} of scene {index.scenes[i]}" for i in (index.first[row], index.second[row])]
    return (
        f"{index.path}: {int(apart.sum())} of {len(apart)} pairs are of two scenes, first pair {_row(row, rows)}: "
        f"{' and '.join(names)}. Scenes have world frames of their own, so such a pair has no geometry; merged indices have "
        "them when image numbers were not moved. Mend the index, or set options.pairs_across_scenes: drop."
    )


def _row(place: int, rows: Sequence[int] | None) -> int:
    return place if rows is None else rows[place]
