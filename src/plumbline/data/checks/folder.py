"""Check any raw folder through its reader, without the pipeline."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.data.canonical import read_scene
from plumbline.data.checks.dataset import write_check, write_summary
from plumbline.data.checks.raw import RawData, alternatives, raw_data, rereader, thinned, write_raw_scene
from plumbline.data.checks.records import CheckConfig, DatasetCheck, SceneCheck
from plumbline.data.checks.scene import check_scene
from plumbline.data.checks.verdict import percent
from plumbline.errors import DataError

# DTU's depth maps come in this size; others are 4:3 images of at least 320x240; AerialMegaDepth's are cut to squares; RE10K's
# are of films.
_SIZES = {"dtu": (128, 160), "sun3d": (192, 256), "rgbd": (192, 256), "aerialmd": (224, 224), "re10k": (180, 320)}
# Wide enough for a shelf and for a street; params.yaml states what a data set's depth may be, a bare folder does not.
_DEPTH_RANGE = (0.05, 200.0)
_DEPTH_RANGES = {"aerialmd": (0.5, 2000.0)}


def check_folder(
    format_name: str,
    path: Path,
    out: Path | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    config: CheckConfig | None = None,
    depth_range: tuple[float, float] | None = None,
) -> DatasetCheck:
    """Check every scene of a raw folder (`format_name`: dtu, sun3d, rgbd, aerialmd or re10k; `options` of that reader).

    A scene that cannot be read is wrong, with the reader's message; when one of the usual misreadings reads it, that is
    named too. With `out`, out/<scene>.{json,png,ply} and out/checks.json are written. DataError when there is no scene.
    """
    raw = raw_data(format_name, path, options or {}, size=_SIZES.get(format_name, (192, 256)))
    config = config or CheckConfig()
    expected = depth_range or _DEPTH_RANGES.get(format_name, _DEPTH_RANGE)
    found = [_check(raw, name, config, out, expected) for name in raw.reader.scenes(raw.path, raw.options)]
    check = DatasetCheck(dataset=format_name, scenes=tuple(found))
    if out is not None:
        write_summary(check, out)
    return check


def _check(
    raw: RawData, name: str, config: CheckConfig, out: Path | None, depth_range: tuple[float, float]
) -> SceneCheck:
    with tempfile.TemporaryDirectory(prefix="plumbline-check-") as scratch:
        folder = Path(scratch) / "scene"
        try:
            few = thinned(raw, name)
            write_raw_scene(folder, few, name, depth_range=depth_range)
        except DataError as error:
            return _unreadable(raw, name, config, depth_range, error)
        scene = read_scene(folder)
        # The one pair of a scene is judged whichever way its views look: there is no better one.
        limits = config.model_copy(update={"max_angle": 180.0}) if len(scene.view_names) == 2 else config
        check = check_scene(scene, limits, reread=rereader(few, name))
        if out is not None:
            write_check(scene, check, out, limits)
        return check


def _unreadable(
    raw: RawData, name: str, config: CheckConfig, depth_range: tuple[float, float], error: DataError
) -> SceneCheck:
    """A scene the reader refuses: wrong, with its message and the usual misreading under which it is true (the best one)."""
    diagnosis = f"{raw.format}/{name}: cannot be read: {error}"
    true = [
        (found.as_read.error or 0.0, label)
        for label, alternative in alternatives(raw, name)
        if (found := _readable(alternative, name, config, depth_range)) is not None
        and found.verdict == "ok"
        and found.as_read is not None
    ]
    if true:
        diagnosis += f" It can, with {percent(min(true)[0])} median error, with {min(true)[1]}."
    return SceneCheck(dataset=raw.format, scene=name, views=0, verdict="wrong", diagnosis=diagnosis)


def _readable(raw: RawData, name: str, config: CheckConfig, depth_range: tuple[float, float]) -> SceneCheck | None:
    with tempfile.TemporaryDirectory(prefix="plumbline-check-") as scratch:
        folder = Path(scratch) / "scene"
        try:
            write_raw_scene(folder, thinned(raw, name), name, depth_range=depth_range)
        except DataError:
            # This alternative reads it no better, which is all that was asked.
            return None
        return check_scene(read_scene(folder), config)
