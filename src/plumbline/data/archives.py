"""Unpacking of zip, tar and rar archives of which no member leaves the folder it is unpacked into."""

import lzma
import os
import posixpath
import shutil
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

from plumbline.data.sources import inside
from plumbline.errors import DataError

CHUNK = 1 << 20
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Member:
    """One entry of an archive: `link` is what a link points at, from the archive's root."""

    name: str
    kind: Literal["file", "folder", "link", "other"]
    link: str = ""


@dataclass(frozen=True)
class RarTool:
    """A program that can read rar: what to call to list the names, one a line, and to unpack into a folder."""

    program: str
    names: Callable[[Path], list[str]]
    unpack: Callable[[Path, Path], list[str]]


RAR_TOOLS = (
    RarTool("unrar", lambda a: ["lb", "--", f"{a}"], lambda a, to: ["x", "-idq", "-o+", "--", f"{a}", f"{to}/"]),
    RarTool("bsdtar", lambda a: ["-tf", f"{a}"], lambda a, to: ["-xf", f"{a}", "-C", f"{to}"]),
    RarTool("7zz", lambda a: ["l", "-ba", "-slt", f"{a}"], lambda a, to: ["x", "-y", "-bd", f"-o{to}", f"{a}"]),
    RarTool("7z", lambda a: ["l", "-ba", "-slt", f"{a}"], lambda a, to: ["x", "-y", "-bd", f"-o{to}", f"{a}"]),
    RarTool("unar", lambda a: ["-tf", f"{a}"], lambda a, to: ["-q", "-D", "-f", "-o", f"{to}", f"{a}"]),
)


def is_archive(path: Path) -> bool:
    """True for what `unpack` can read: zip, tar (plain, gz, bz2, xz) and rar, by content."""
    return zipfile.is_zipfile(path) or _is_rar(path) or tarfile.is_tarfile(path)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack `archive` into the empty `folder`, as files and folders only.

    A link to a file of the archive becomes a copy of it. DataError for a broken archive and for a member that would
    leave the folder ("..", absolute, a link to elsewhere) or is a device. Left for the caller to remove on an error.
    """
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        elif _is_rar(archive):
            _unpack_rar(archive, folder)
        else:
            _unpack_tar(archive, folder)
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"{archive}: its files cannot be written under {folder.parent}: {error.strerror}."
            ) from error
        raise DataError(f"{archive}: cannot be unpacked ({error}). Delete it, so that it is fetched again.") from error


def unpacked_size(archive: Path) -> int:
    """Bytes the archive's files take once unpacked, as a zip says; its own size for the other kinds."""
    if not zipfile.is_zipfile(archive):
        return archive.stat().st_size
    with zipfile.ZipFile(archive) as opened:
        return sum(info.file_size for info in opened.infolist())


def _is_rar(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(6) == b"Rar!\x1a\x07"


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        _write(archive, folder, ((_zip_member(i, opened), partial(opened.open, i)) for i in opened.infolist()))


def _zip_member(info: zipfile.ZipInfo, opened: zipfile.ZipFile) -> Member:
    mode = info.external_attr >> 16
    if info.is_dir():
        return Member(info.filename, "folder")
    if stat.S_ISLNK(mode):
        return Member(info.filename, "link", _from_root(info.filename, opened.read(info).decode()))
    plain = stat.S_IFMT(mode) in (0, stat.S_IFREG)
    return Member(info.filename, "file" if plain else "other")


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        _write(archive, folder, ((_tar_member(info), partial(opened.extractfile, info)) for info in opened))


def _tar_member(info: tarfile.TarInfo) -> Member:
    if info.issym():
        return Member(info.name, "link", _from_root(info.name, info.linkname))
    if info.islnk():
        return Member(info.name, "link", posixpath.normpath(info.linkname))
    return Member(info.name, "folder" if info.isdir() else "file" if info.isfile() else "other")


def _from_root(name: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def _write(archive: Path, folder: Path, members: Iterable[tuple[Member, Callable[[], IO[bytes] | None]]]) -> None:
    """Write files as they come, then the links, since a link may come before the file that it names."""
    links: list[Member] = []
    for member, opened in members:
        target = _target(archive, folder, member.name)
        if member.kind == "folder":
            target.mkdir(parents=True, exist_ok=True)
        elif member.kind == "link":
            _target(archive, folder, member.link)
            links.append(member)
        elif (source := opened() if member.kind == "file" else None) is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as written:
                shutil.copyfileobj(source, written, CHUNK)
        else:
            raise DataError(f"{archive}: {member.name} is a device or pipe. Nothing of it was kept: do not trust it.")
    _copy_links(archive, folder, links)


def _copy_links(archive: Path, folder: Path, links: list[Member]) -> None:
    for member in links:
        source, target = folder / member.link, folder / member.name
        if not source.is_file():
            raise DataError(f"{archive}: {member.name} is a link to {member.link}, which is no file of the archive.")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _target(archive: Path, folder: Path, name: str) -> Path:
    try:
        return folder / inside(name)
    except ValueError as error:
        raise DataError(
            f"{archive}: {name!r} would be written outside the folder it is unpacked into. Nothing of it was kept: "
            "do not trust it."
        ) from error


def _unpack_rar(archive: Path, folder: Path) -> None:
    tool = next((tool for tool in RAR_TOOLS if shutil.which(tool.program)), None)
    if tool is None:
        names = ", ".join(tool.program for tool in RAR_TOOLS)
        raise DataError(
            f"{archive}: none of the programs that unpack rar is on the path ({names}). Install one, for example with "
            '"apt install unar" or "brew install unar", and run the same command again: nothing is downloaded twice.'
        )
    for name in _rar_names(archive, tool):
        _target(archive, folder, name)
    _call(archive, [tool.program, *tool.unpack(archive, folder)])
    _refuse_links(archive, folder)


def _rar_names(archive: Path, tool: RarTool) -> Iterator[str]:
    program = "lsar" if tool.program == "unar" else tool.program
    arguments = [f"{archive}"] if program == "lsar" else tool.names(archive)
    lines = _call(archive, [program, *arguments]).splitlines()
    if program == "lsar":
        return iter(lines[1:])
    if program in ("7z", "7zz"):
        return (line.removeprefix("Path = ").replace(os.sep, "/") for line in lines if line.startswith("Path = "))
    return iter(lines)


def _call(archive: Path, command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-400:]
        raise DataError(f"{archive}: {command[0]} ended with {done.returncode}: {said}. Delete it to fetch it again.")
    return done.stdout


def _refuse_links(archive: Path, folder: Path) -> None:
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            mode = (path := Path(parent, name)).lstat().st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise DataError(f"{archive}: {path.relative_to(folder)} is a link or device. Nothing of it was kept.")
