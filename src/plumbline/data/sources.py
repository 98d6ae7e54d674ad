"""Where a data set's raw files come from, and the folder they lie in."""

import hashlib
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator, model_validator

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Url = Annotated[str, Field(pattern=r"^https?://[^/]+/?")]
Patterns = Annotated[tuple[str, ...], Field(min_length=1)]


def inside(name: str) -> str:
    """`name` when it is a relative path with "/" that stays in its folder; ValueError when it is not."""
    parts = PurePosixPath(name).parts
    if not name or parts[:1] in (("/",), ("//",)) or ".." in parts or set("\\\0") & set(name) or name[1:2] == ":":
        raise ValueError(f"{name!r} is not a relative path that stays inside its folder")
    return name


def matches(path: str, pattern: str) -> bool:
    """True when a path with "/" matches a glob: `*` stays inside one folder level, `**` spans any number of them."""
    return _match(path.split("/"), pattern.split("/"))


def may_contain(folder: str, pattern: str) -> bool:
    """True when something below `folder` could match the glob, so that its listing is worth reading."""
    wanted = pattern.split("/")
    for depth, part in enumerate(folder.split("/")):
        if wanted[depth] == "**":
            return True
        if len(wanted) <= depth + 1 or not fnmatchcase(part, wanted[depth]):
            return False
    return True


def _match(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_match(parts[skip:], wanted[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _match(parts[1:], wanted[1:])


class Synthetic(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """Files rendered by `plumbline.data.synthetic`; `settings` are the fields of its Config."""

    kind: Literal["synthetic"]
    settings: dict[str, Any] = {}


class Folder(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """A copy that already exists. It is read in place and never written to."""

    kind: Literal["folder"]
    path: Path
    patterns: Patterns = ("**",)


class RemoteFile(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """One file to download. Without `sha256` the first copy is trusted and its hash goes into the manifest.

    `name` is needed where the URL does not end in one; a Google Drive file is written as
    `https://drive.google.com/uc?export=download&id=<id>&confirm=t` with its `name`. Sizes are in bytes. `unpacked_size`
    only serves the check of free disk. `into` is the folder, inside the raw folder, that the file is unpacked into.
    """

    url: Url
    mirrors: tuple[Url, ...] = ()
    sha256: Sha256 | None = None
    size: Annotated[int, Field(gt=0)] | None = None
    unpacked_size: Annotated[int, Field(gt=0)] | None = None
    name: str = ""
    into: str = "."

    @model_validator(mode="before")
    @classmethod
    def _name_from_url(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name"):
            return data
        last = PurePosixPath(urlsplit(str(data.get("url", ""))).path).name
        if "." not in last:
            raise ValueError(f"{data.get('url')} does not end in a file name: say it with `name`")
        return {**data, "name": last}

    @field_validator("name", "into")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        return inside(value)


class Archive(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """Files from web servers, unpacked when `unpack` is set (zip, tar, rar); archives go once they are unpacked."""

    kind: Literal["archive"]
    files: Annotated[tuple[RemoteFile, ...], Field(min_length=1)]
    unpack: bool = True
    keep_archives: bool = False

    @field_validator("files")
    @classmethod
    def _names_differ(cls, files: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
        names = [file.name for file in files]
        if len(set(names)) < len(names):
            raise ValueError(f"two files have one name: {sorted({name for name in names if names.count(name) > 1})}")
        return files


class Tree(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """Folders below an Apache directory listing. `include` is relative to each of `folders`."""

    kind: Literal["tree"]
    url: Url
    mirrors: tuple[Url, ...] = ()
    folders: Annotated[tuple[str, ...], Field(min_length=1)] = (".",)
    include: Patterns = ("**",)
    connections: Annotated[int, Field(ge=1, le=16)] = 4

    @field_validator("folders")
    @classmethod
    def _stay_inside(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(inside(folder.strip("/") or ".") for folder in folders)


class Terms(BaseModel, frozen=True, extra="forbid", defer_build=True):
    """Files that may only be had by whoever agreed to their terms of use."""

    kind: Literal["terms"]
    url: Url
    steps: str


Source = Annotated[Synthetic | Folder | Archive | Tree | Terms, Field(discriminator="kind")]


def identity(source: Source) -> dict[str, Any]:
    """What decides the files' contents, as JSON: no machine's path, no mirror, no number of connections."""
    if isinstance(source, Archive):
        files = [{"file": f.name, "into": f.into, "from": f.sha256 or f.url} for f in source.files]
        return {"kind": source.kind, "files": files, "unpack": source.unpack}
    return source.model_dump(mode="json", exclude={"path", "mirrors", "connections"})


def folder_name(dataset: str, source: Source) -> str:
    """`<dataset>-<8 hex>`: another source gets another folder, so that experiments do not overwrite one another."""
    what = {**identity(source), "path": str(source.path)} if isinstance(source, Folder) else identity(source)
    return f"{dataset}-{fingerprint(what)[:8]}"


def fingerprint(value: Any) -> str:
    """SHA-256, in hex, of a JSON value; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def raw_folder(dataset: str, source: Source, *, root: Path) -> Path:
    """The folder of a data set's raw files: a `folder` source's own path, else `<root>/<dataset>-<8 hex>`."""
    return source.path.expanduser() if isinstance(source, Folder) else root / folder_name(dataset, source)


def work_folder(dataset: str, source: Source, *, root: Path) -> Path:
    """Beside the raw folder: unfinished transfers, archives, the lock and the record of what is complete."""
    return root / f"{folder_name(dataset, source)}.work"
