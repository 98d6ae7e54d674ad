"""One pair of AerialMegaDepth as a data set of its own, in the preprocessed layout: files copied as they are, a new index.

The folder has train.npz and val.npz, both with the one pair, <scene>/<tag>.{jpg,exr,npz} of its two images, their label maps
in seg/<scene>/<tag>.png where there are any, and pair.json, which says what was taken from where, with each file's SHA-256.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plumbline.data.aerialmd_index import read_index
from plumbline.data.manifest import list_files
from plumbline.data.sources import inside
from plumbline.errors import ConfigError, DataError
from plumbline.files import atomic_path, read_json, sha256_file, write_json

INDICES = ("train.npz", "val.npz")
MASKS = "seg"
ABOUT = "pair.json"
_RECORD = [("scene_id", np.int64), ("im1_id", np.int64), ("im2_id", np.int64), ("score", np.float64)]
_SHOWN = 8


@dataclass(frozen=True)
class IndexedPair:
    """Two images of one scene by their tags, in the index's order; `row` is the pair's place in the index."""

    index: Path
    row: int
    scene: str
    tags: tuple[str, str]
    score: float


def find_index(name: Path, root: Path) -> Path:
    """The index file `name` as it is given or, where that is no file, in the folder `root`; DataError when it is in neither."""
    for path in (name, root / name):
        if path.is_file():
            return path
    raise DataError(
        f"{name}: no such index, neither here nor in {root}. Give the file with the pairs, such as train.npz."
    )


def find_pair(index: Path, row: int) -> IndexedPair:
    """Pair `row` (from 0) of an index file; other rows may be broken.

    DataError when the index has no such pair, when its images are of two scenes or one image, and when a name leads out of
    the data set's folder.
    """
    try:
        found = read_index(index, rows=[row])
    except DataError as error:
        # What the reader of whole data sets advises is no help with one pair.
        message = str(error).replace("Mend the index, or set options.pairs_across_scenes: drop.", "Take another pair.")
        raise DataError(message) from error
    first, second, score = int(found.first[0]), int(found.second[0]), float(found.score[0])
    scene, tags = str(found.scenes[first]), (str(found.tags[first]), str(found.tags[second]))
    if tags[0] == tags[1]:
        raise DataError(f"{index}: pair {row} is image {tags[0]} with itself; expected two. Take another pair.")
    try:
        for tag in tags:
            inside(f"{scene}/{tag}")
    except ValueError as error:
        raise DataError(f"{index}: pair {row}: {error}. Use the index of a source you trust.") from error
    return IndexedPair(index, row, scene, tags, score)


def mask_folder(root: Path, given: Path | None) -> Path | None:
    """The folder of label maps: `given`, else one of the usual two where it is there, else None."""
    if given is not None:
        if not given.is_dir():
            raise DataError(f"{given}: no such folder; expected label maps in {given.name}/<scene>/<tag>.png.")
        return given
    usual = (root / MASKS, root.with_name(f"{root.name}_segmentation"))
    return next((folder for folder in usual if folder.is_dir()), None)


def pair_files(pair: IndexedPair, root: Path, masks: Path | None) -> dict[str, Path]:
    """The files of both images: path in the data set to be -> the file there is. DataError naming all that are missing."""
    files: dict[str, Path] = {}
    for stem in (f"{pair.scene}/{tag}" for tag in pair.tags):
        files |= {f"{stem}{kind}": root / f"{stem}{kind}" for kind in (".jpg", ".exr", ".npz")}
        if masks is not None:
            files[f"{MASKS}/{stem}.png"] = masks / f"{stem}.png"
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"pair {pair.row} of {pair.index.name} needs {len(files)} files, of which {len(missing)} are not there: "
            f"{', '.join(missing)}. Fetch the scene again, correct the folders, or take another pair."
        )
    return files


def write_pair_dataset(folder: Path, pair: IndexedPair, files: Mapping[str, Path]) -> None:
    """Copy `files` into `folder` and write its indices, which hold no pickles; same source, same bytes."""
    for target, source in files.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / target)
    for name in INDICES:
        _write_index(folder / name, pair)


def _write_index(path: Path, pair: IndexedPair) -> None:
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            scenes=np.array([pair.scene]),
            images=np.array(pair.tags),
            images_scene_name=np.array([pair.scene] * 2),
            pairs=np.array([(0, 0, 1, pair.score)], _RECORD),
        )


def write_about(folder: Path, pair: IndexedPair) -> None:
    """Write pair.json: what the folder was made from, and all files in it with their hashes. Written last."""
    files = {name: sha256_file(folder / name) for name in list_files(folder)}
    taken = {"index": pair.index.name, "pair": pair.row, "scene": pair.scene, "images": pair.tags, "score": pair.score}
    write_json(folder / ABOUT, {**taken, "files": files})


def require_free(out: Path, *, overwrite: bool) -> None:
    """ConfigError when `out` is there, unless it is empty or `overwrite` is asked for and nothing but an extraction is in it."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / ABOUT).is_file():
        raise ConfigError(f"{out}: is there, and no extraction wrote it. Give another folder.")
    if not overwrite:
        raise ConfigError(f"{out}: holds a pair already. Give another folder, or --overwrite to replace it.")
    own = [*read_json(out / ABOUT)["files"], ABOUT]
    others = sorted(set(list_files(out)) - set(own))
    if others:
        raise ConfigError(
            f"{out}: holds files that no extraction wrote: {_list(others)}. Move them away, or give another folder."
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
