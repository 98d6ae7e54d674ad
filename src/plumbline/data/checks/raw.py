"""Raw files and their reader: views read again under the reader's alternatives, and any raw folder as canonical scenes."""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from plumbline.config import parse
from plumbline.data.canonical import fit, validate_view, write_scene
from plumbline.data.checks.scene import Reread, Rereader
from plumbline.errors import ConfigError, DataError
from plumbline.records import View

FORMATS = ("dtu", "sun3d", "rgbd", "aerialmd", "re10k")
# Of long sequences some hundreds of views, evenly, are as good as all.
_MAX_VIEWS = 600


@dataclass(frozen=True)
class RawData:
    """A raw folder and how it is read: format (a reader module of plumbline.data), its options, the canonical size."""

    format: str
    path: Path
    options: Any
    size: tuple[int, int]

    @property
    def reader(self) -> ModuleType:
        """The reader module."""
        return importlib.import_module(f"plumbline.data.{self.format}")


def raw_data(
    format_name: str, path: Path, options: Mapping[str, Any], *, size: tuple[int, int], where: str = "options"
) -> RawData:
    """A raw folder with checked options; ConfigError for an unknown format or option (named below `where`)."""
    if format_name not in FORMATS:
        raise ConfigError(f"{format_name!r} is no format. There is: {', '.join(FORMATS)}.")
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give the one that holds the {format_name} data.")
    module = importlib.import_module(f"plumbline.data.{format_name}")
    return RawData(format_name, path, parse(dict(options), module.Options, where=where), size)


def rereader(raw: RawData, scene: str) -> Rereader:
    """A function that reads given views of a raw scene again, once for each of the reader's alternatives."""

    def reread(select: Sequence[int], only: Sequence[str] | None) -> Iterable[Reread]:
        for label, options in raw.reader.alternatives(raw.path, scene, raw.options):
            if only is not None and label not in only:
                continue
            try:
                views = raw.reader.views(raw.path, scene, options, select=select)
                yield Reread(label, tuple(_fitted(views, scene, raw.size)))
            except DataError as error:
                yield Reread(label, failure=str(error))

    return reread


def alternatives(raw: RawData, scene: str) -> list[tuple[str, RawData]]:
    """The reader's alternatives for a scene that cannot be read; none when even listing them meets the broken files."""
    try:
        found = raw.reader.alternatives(raw.path, scene, raw.options)
    except DataError:
        # The error of the reading proper, which is shown, says all there is to say.
        return []
    return [(label, replace(raw, options=options)) for label, options in found]


def thinned(raw: RawData, scene: str) -> RawData:
    """`raw` with a stride that leaves some hundreds of views, for readers that can list frames without decoding them."""
    if not hasattr(raw.reader, "frames"):
        return raw
    count = len(raw.reader.frames(raw.path, scene, raw.options))
    stride = raw.options.stride * max(-(-count // _MAX_VIEWS), 1)
    return replace(raw, options=raw.options.model_copy(update={"stride": stride}))


def write_raw_scene(folder: Path, raw: RawData, scene: str, *, depth_range: tuple[float, float]) -> None:
    """Write a raw scene as a canonical one; DataError, with the reader's message, when it is broken."""
    write_scene(
        folder,
        dataset=raw.format,
        name=scene,
        views=_fitted(raw.reader.views(raw.path, scene, raw.options), scene, raw.size),
        depth_range=depth_range,
        pairs=raw.reader.pairs(raw.path, scene, raw.options),
    )


def _fitted(views: Iterable[View], scene: str, size: tuple[int, int]) -> Iterator[View]:
    for view in views:
        # At the size it was read in: a K of another resolution could fit by chance afterwards.
        validate_view(view, f"{scene} view {view.name}")
        yield fit(view, size)
