"""Downloads against a local server that cuts, corrupts, redirects, forgets and lists as real ones do."""

import functools
import hashlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
from collections import Counter, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import numpy as np
import pydantic
import pytest

import plumbline.data
from plumbline.data import archives, download, manifest, progress
from plumbline.data.listings import Entry, parse_listing
from plumbline.data.sources import Archive, Folder, Source, Synthetic, Terms, Tree, matches, may_contain, work_folder
from plumbline.data.transfer import Client, Policy
from plumbline.errors import ConfigError, DataError

CLIENT = Client(Policy(attempts=3, first_wait=0.0, longest_wait=0.0, connect_timeout=5.0, read_timeout=5.0))
BLOB = np.random.default_rng(0).bytes(3_000_000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# A server with faults


@dataclass
class Site:
    """Files by path and the faults of each; `asked` are the requests with their Range."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    no_ranges: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    holds: dict[str, threading.Event] = field(default_factory=dict)
    url: str = ""

    def count(self, path: str) -> int:
        return Counter(asked for asked, _ in self.asked)[path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, site: Site, *arguments: object) -> None:
        self.site = site
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site, path = self.site, self.path
        site.asked.append((path, self.headers.get("Range")))
        if site.statuses.get(path):
            self.answer(site.statuses[path].pop(0), b"")
        elif path in site.redirects:
            self.answer(302, b"", Location=site.redirects[path])
        elif path in site.pages:
            self.answer(200, site.pages[path].encode(), **{"Content-Type": "text/html"})
        elif path in site.files:
            self.send_file(path, site.files[path])
        else:
            self.answer(404, b"")

    def send_file(self, path: str, content: bytes) -> None:
        headers = {"ETag": self.site.tags.get(path, '"1"')}
        asked = self.headers.get("Range")
        if not asked or path in self.site.no_ranges or self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            return self.answer(200, content, path, **headers)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return self.answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(206, content[start:], path, **headers, **{"Content-Range": span})

    def answer(self, status: int, body: bytes, path: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        cuts = self.site.cuts.get(path)
        cut = cuts.pop(0) if cuts else None
        self.wfile.write(body[:cut])
        self.wfile.flush()
        if path in self.site.holds:
            self.site.holds[path].wait(timeout=30)
        if cut is not None or path in self.site.holds:
            self.close_connection = True


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, site))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    for held in site.holds.values():
        held.set()
    server.shutdown()
    server.server_close()
    thread.join()


def plain(url: str, **file: object) -> Archive:
    return Archive.model_validate({"kind": "archive", "unpack": False, "files": [{"url": url, **file}]})


def packed(*urls: str, **file: object) -> Archive:
    return Archive.model_validate({"kind": "archive", "files": [{"url": url, **file} for url in urls]})


def fetch(source: Source, root: Path, dataset: str = "box") -> manifest.Manifest:
    return download.fetch(dataset, source, root=root, progress=False, client=CLIENT)


def content(source: Source, root: Path, name: str, dataset: str = "box") -> bytes:
    return (download.raw_folder(dataset, source, root=root) / name).read_bytes()


# Single files


def test_file_is_fetched_verified_and_listed(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"] = BLOB
    source = plain(f"{site.url}/a.bin", sha256=sha256(BLOB), size=len(BLOB))
    found = fetch(source, tmp_path)
    assert content(source, tmp_path, "a.bin") == BLOB
    assert [(f.path, f.size, f.sha256) for f in found.files] == [("a.bin", len(BLOB), sha256(BLOB))]
    assert found.total == {"files": 1, "bytes": len(BLOB)}


def test_cut_transfer_continues_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"], site.cuts["/a.bin"] = BLOB, [1_000_000, 500_000]
    source = plain(f"{site.url}/a.bin", sha256=sha256(BLOB), size=len(BLOB))
    fetch(source, tmp_path)
    assert content(source, tmp_path, "a.bin") == BLOB
    starts = [int(r[6:-1]) for path, r in site.asked if r]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1] < len(BLOB)


def test_attempts_with_progress_are_not_counted(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"], site.cuts["/a.bin"] = BLOB, [400_000] * 6
    source = plain(f"{site.url}/a.bin", sha256=sha256(BLOB), size=len(BLOB))
    fetch(source, tmp_path)
    assert site.count("/a.bin") == 7
    assert content(source, tmp_path, "a.bin") == BLOB


def test_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"], site.cuts["/a.bin"] = BLOB, [1_000_000]
    site.no_ranges.add("/a.bin")
    source = plain(f"{site.url}/a.bin")
    fetch(source, tmp_path)
    assert content(source, tmp_path, "a.bin") == BLOB


def test_changed_file_is_not_spliced_when_no_hash_would_tell(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"], site.cuts["/a.bin"] = BLOB, [1_000_000]
    source = plain(f"{site.url}/a.bin")
    work = work_folder("box", source, root=tmp_path)
    (work / "parts").mkdir(parents=True)
    (work / "parts" / "a.bin.part").write_bytes(b"x" * 1000)
    (work / "parts" / "a.bin.part.version").write_text('"0"')
    fetch(source, tmp_path)
    assert content(source, tmp_path, "a.bin") == BLOB


def test_transient_statuses_are_retried(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"], site.statuses["/a.bin"] = BLOB, [503, 429]
    source = plain(f"{site.url}/a.bin", size=len(BLOB))
    fetch(source, tmp_path)
    assert site.count("/a.bin") == 3


def test_redirect_is_followed(site: Site, tmp_path: Path) -> None:
    site.files["/b.bin"], site.redirects["/a.bin"] = BLOB, "/b.bin"
    source = plain(f"{site.url}/a.bin", size=len(BLOB))
    fetch(source, tmp_path)
    assert content(source, tmp_path, "a.bin") == BLOB


def test_not_found_moves_to_the_next_mirror(site: Site, tmp_path: Path) -> None:
    site.files["/b.bin"] = BLOB
    source = plain(f"{site.url}/gone.bin", mirrors=[f"{site.url}/b.bin"], size=len(BLOB), sha256=sha256(BLOB))
    fetch(source, tmp_path)
    assert content(source, tmp_path, "gone.bin") == BLOB
    assert site.count("/gone.bin") == 1


def flipped(blob: bytes) -> bytes:
    return blob[:1234] + bytes([blob[1234] ^ 1]) + blob[1235:]


def test_flipped_byte_is_refused_and_the_next_mirror_used(site: Site, tmp_path: Path) -> None:
    site.files |= {"/bad.bin": flipped(BLOB), "/good.bin": BLOB}
    source = plain(f"{site.url}/bad.bin", mirrors=[f"{site.url}/good.bin"], sha256=sha256(BLOB))
    fetch(source, tmp_path)
    assert content(source, tmp_path, "bad.bin") == BLOB


def test_failure_names_each_mirror_and_the_way_by_hand(site: Site, tmp_path: Path) -> None:
    site.files |= {"/bad.bin": flipped(BLOB), "/short.bin": BLOB[:10]}
    urls = [f"{site.url}/{name}.bin" for name in ("bad", "gone", "short")]
    source = plain(urls[0], mirrors=urls[1:], sha256=sha256(BLOB), size=len(BLOB))
    with pytest.raises(DataError) as caught:
        fetch(source, tmp_path)
    message = str(caught.value)
    assert f"{urls[0]}: what it sent has SHA-256 {sha256(flipped(BLOB))}" in message
    assert f"{urls[1]}: HTTP 404" in message
    assert f"{urls[2]}: has 10 bytes, expected {len(BLOB)}" in message
    target = download.raw_folder("box", source, root=tmp_path) / "bad.bin"
    assert f"put it at {target}" in message
    assert "dvc repro -f download@box" in message
    assert not target.exists()


def test_part_that_went_bad_is_fetched_again_from_its_start(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"] = BLOB
    source = plain(f"{site.url}/a.bin", sha256=sha256(BLOB))
    part = work_folder("box", source, root=tmp_path) / "parts" / "a.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 5000)
    fetch(source, tmp_path)
    assert content(source, tmp_path, "a.bin") == BLOB
    assert [r for _, r in site.asked if r] == ["bytes=5000-"]


def test_web_page_instead_of_the_file_keeps_the_part(site: Site, tmp_path: Path) -> None:
    site.pages["/uc?id=1&confirm=t"] = "<html><title>Google Drive - Quota exceeded</title></html>"
    source = plain(f"{site.url}/uc?id=1&confirm=t", name="dtu.rar", sha256=sha256(BLOB))
    part = work_folder("box", source, root=tmp_path) / "parts" / "dtu.rar.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BLOB[:1000])
    with pytest.raises(DataError, match=r"web page .'Google Drive - Quota exceeded'. instead of the file"):
        fetch(source, tmp_path)
    assert part.read_bytes() == BLOB[:1000]


def test_file_put_by_hand_is_used(site: Site, tmp_path: Path) -> None:
    source = plain(f"{site.url}/gone.bin", sha256=sha256(BLOB), size=len(BLOB))
    target = download.raw_folder("box", source, root=tmp_path) / "gone.bin"
    target.parent.mkdir(parents=True)
    target.write_bytes(BLOB)
    fetch(source, tmp_path)
    assert site.asked == []


def test_unreachable_server_is_named(tmp_path: Path) -> None:
    source = plain("http://127.0.0.1:9/a.bin", size=10)
    with pytest.raises(DataError, match=r"127.0.0.1:9/a.bin: ConnectionError.*3 attempts without a new byte"):
        fetch(source, tmp_path)


def test_url_without_a_file_name_needs_one() -> None:
    with pytest.raises(pydantic.ValidationError, match="does not end in a file name: say it with `name`"):
        plain("https://drive.google.com/uc?export=download&id=x&confirm=t")


def test_second_call_asks_nothing(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"] = BLOB
    source = plain(f"{site.url}/a.bin")
    first = fetch(source, tmp_path)
    asked = len(site.asked)
    assert fetch(source, tmp_path) == first
    assert len(site.asked) == asked


def test_file_changed_after_its_fetch_is_fetched_again(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"] = BLOB
    source = plain(f"{site.url}/a.bin")
    first = fetch(source, tmp_path)
    (download.raw_folder("box", source, root=tmp_path) / "a.bin").write_bytes(b"cut")
    assert fetch(source, tmp_path) == first
    assert content(source, tmp_path, "a.bin") == BLOB


def test_too_little_disk_is_said_before_anything_is_fetched(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/a.bin"] = BLOB
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 10**9))
    source = plain(f"{site.url}/a.bin", size=19 * 10**9)
    with pytest.raises(DataError, match=r"box: 19.0 GB are needed under .*, 1.0 GB are free"):
        fetch(source, tmp_path)
    assert site.asked == []


KILLED = """
import sys
from pathlib import Path
from plumbline.data import download
from plumbline.data.sources import Archive
source = Archive.model_validate_json(sys.argv[1])
download.fetch("box", source, root=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_mid_transfer_then_continues(site: Site, tmp_path: Path, how: signal.Signals) -> None:
    site.files["/a.bin"], site.cuts["/a.bin"] = BLOB, [2_500_000]
    site.holds["/a.bin"] = threading.Event()
    source = plain(f"{site.url}/a.bin", sha256=sha256(BLOB), size=len(BLOB))
    part = work_folder("box", source, root=tmp_path) / "parts" / "a.bin.part"
    command = [sys.executable, "-c", KILLED, source.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        wait_for(lambda: part.exists() and part.stat().st_size >= 1 << 20, process)
        process.send_signal(how)
        process.wait(timeout=60)
    assert process.returncode != 0
    kept = part.stat().st_size
    site.holds.pop("/a.bin").set()
    fetch(source, tmp_path)
    assert content(source, tmp_path, "a.bin") == BLOB
    assert site.asked[-1] == ("/a.bin", f"bytes={kept}-")


def wait_for(condition: object, process: subprocess.Popen[bytes]) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if condition():
            return
        assert process.poll() is None, process.stderr.read().decode()
        pause.wait(0.02)
    raise AssertionError("the transfer never got going")


# Archives


def zip_of(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for name, body in members.items():
            opened.writestr(name, body)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            opened.writestr(info, target)
    return stream.getvalue()


def tar_of(members: dict[str, bytes], *, mode: str = "w", special: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as opened:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            opened.addfile(info, io.BytesIO(body))
        for info in special:
            opened.addfile(info)
    return stream.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


MEMBERS = {"scan1/a.txt": b"a", "scan1/deep/b.bin": BLOB[:2000]}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("s.zip", zip_of(MEMBERS)),
        ("s.tar", tar_of(MEMBERS)),
        ("s.tar.gz", tar_of(MEMBERS, mode="w:gz")),
        ("s.tgz", tar_of(MEMBERS, mode="w:gz")),
        ("s.tar.bz2", tar_of(MEMBERS, mode="w:bz2")),
        ("s.tar.xz", tar_of(MEMBERS, mode="w:xz")),
    ],
)
def test_archive_is_unpacked_and_not_kept(site: Site, tmp_path: Path, name: str, body: bytes) -> None:
    site.files[f"/{name}"] = body
    source = packed(f"{site.url}/{name}")
    found = fetch(source, tmp_path)
    assert [file.path for file in found.files] == sorted(MEMBERS)
    assert {path: content(source, tmp_path, path) for path in MEMBERS} == MEMBERS
    work = work_folder("box", source, root=tmp_path)
    assert list((work / "downloads").iterdir()) == []
    assert fetch(source, tmp_path) == found


def test_file_lost_after_unpacking_is_fetched_again(site: Site, tmp_path: Path) -> None:
    site.files |= {"/s.zip": zip_of(MEMBERS), "/t.zip": zip_of({"other": b"o"})}
    source = packed(f"{site.url}/s.zip", f"{site.url}/t.zip")
    before = fetch(source, tmp_path)
    (download.raw_folder("box", source, root=tmp_path) / "scan1/a.txt").unlink()
    site.asked.clear()
    assert fetch(source, tmp_path) == before
    assert {path for path, _ in site.asked} == {"/s.zip"}


def test_interrupted_unpacking_is_done_again(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/s.zip"] = zip_of(MEMBERS)
    source = packed(f"{site.url}/s.zip", sha256=sha256(site.files["/s.zip"]))
    original = Path.replace

    def stop_at_second(self: Path, target: Path) -> Path:
        if self.name == "b.bin":
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", stop_at_second)
        fetch(source, tmp_path)
    site.asked.clear()
    fetch(source, tmp_path)
    assert site.asked == []
    assert content(source, tmp_path, "scan1/deep/b.bin") == MEMBERS["scan1/deep/b.bin"]


ESCAPES = [
    ("z.zip", zip_of({"ok": b"1", "../evil": b"x"})),
    ("z.zip", zip_of({"/tmp_evil/evil": b"x"})),
    ("z.zip", zip_of({"a/../../evil": b"x"})),
    ("z.zip", zip_of({"ok": b"1"}, {"evil": "../../evil"})),
    ("z.zip", zip_of({"ok": b"1"}, {"evil": "/etc/passwd"})),
    ("t.tar", tar_of({"ok": b"1", "../evil": b"x"})),
    ("t.tar", tar_of({"/tmp_evil/evil": b"x"})),
    ("t.tar", tar_of({}, special=(special("d", tarfile.SYMTYPE, ".."),))),
    ("t.tar", tar_of({"ok": b"1"}, special=(special("evil", tarfile.SYMTYPE, "/etc/passwd"),))),
    ("t.tar", tar_of({"ok": b"1"}, special=(special("evil", tarfile.LNKTYPE, "../evil"),))),
]


@pytest.mark.parametrize(("name", "body"), ESCAPES)
def test_member_that_leaves_the_folder_is_refused(site: Site, tmp_path: Path, name: str, body: bytes) -> None:
    site.files[f"/{name}"] = body
    source, root = packed(f"{site.url}/{name}"), tmp_path / "a/b/raw"
    with pytest.raises(DataError, match="would be written outside the folder"):
        fetch(source, root)
    work = work_folder("box", source, root=root)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "ok")]
    assert not download.raw_folder("box", source, root=root).exists()
    assert list((work / "unpacked").iterdir()) == []


def test_device_is_refused(tmp_path: Path) -> None:
    packed_file = tmp_path / "d.tar"
    packed_file.write_bytes(tar_of({"ok": b"1"}, special=(special("null", tarfile.CHRTYPE),)))
    with pytest.raises(DataError, match="null is a device or pipe"):
        archives.unpack(packed_file, tmp_path / "out")


def test_link_inside_becomes_a_copy(tmp_path: Path) -> None:
    packed_file = tmp_path / "l.tar"
    links = (special("scan1/l", tarfile.SYMTYPE, "deep/b.bin"), special("hard", tarfile.LNKTYPE, "scan1/a.txt"))
    packed_file.write_bytes(tar_of(MEMBERS, special=links))
    archives.unpack(packed_file, tmp_path / "out")
    assert (tmp_path / "out/scan1/l").read_bytes() == MEMBERS["scan1/deep/b.bin"]
    assert not (tmp_path / "out/scan1/l").is_symlink()
    assert (tmp_path / "out/hard").read_bytes() == b"a"


@pytest.mark.parametrize("name", ["c.zip", "c.tar.gz"])
def test_broken_archive_is_named(site: Site, tmp_path: Path, name: str) -> None:
    whole = zip_of(MEMBERS) if name == "c.zip" else tar_of(MEMBERS, mode="w:gz")
    site.files[f"/{name}"] = whole[: len(whole) // 2]
    with pytest.raises(DataError, match=f"{name}: cannot be unpacked"):
        fetch(packed(f"{site.url}/{name}"), tmp_path)


def test_two_archives_with_one_path_are_refused(site: Site, tmp_path: Path) -> None:
    site.files |= {"/s.zip": zip_of({"a": b"1"}), "/t.zip": zip_of({"a": b"2"})}
    with pytest.raises(DataError, match=r"t.zip and s.zip both hold a"):
        fetch(packed(f"{site.url}/s.zip", f"{site.url}/t.zip"), tmp_path)


RAR_NEEDED = "Rar!\x1a\x07\x00"


def test_rar_without_a_program_names_them_and_keeps_the_archive(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/d.rar"] = RAR_NEEDED.encode("latin1") + BLOB[:100]
    source = packed(f"{site.url}/d.rar")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DataError, match=r"none of the programs that unpack rar .*unrar, bsdtar, 7zz, 7z, unar"):
        fetch(source, tmp_path)
    assert (work_folder("box", source, root=tmp_path) / "downloads/d.rar").exists()


@pytest.mark.parametrize("tool", archives.RAR_TOOLS, ids=lambda tool: tool.program)
def test_rar_program_lists_and_unpacks(tmp_path: Path, tool: archives.RarTool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which(tool.program) or tool.program == "unrar":
        pytest.skip(f"{tool.program} is not installed or reads nothing but rar, which no free program writes")
    monkeypatch.setattr(archives, "RAR_TOOLS", (tool,))
    monkeypatch.setattr(archives, "_is_rar", lambda _: True)
    monkeypatch.setattr(zipfile, "is_zipfile", lambda _: False)
    good, bad = tmp_path / "good.zip", tmp_path / "bad.zip"
    good.write_bytes(zip_of(MEMBERS))
    bad.write_bytes(zip_of({"ok": b"1", "../evil": b"x"}))
    for name in ("out", "in/out"):
        (tmp_path / name).mkdir(parents=True)
    archives.unpack(good, tmp_path / "out")
    assert {path: (tmp_path / "out" / path).read_bytes() for path in MEMBERS} == MEMBERS
    with pytest.raises(DataError, match="would be written outside"):
        archives.unpack(bad, tmp_path / "in/out")
    assert list((tmp_path / "in").rglob("*")) == [tmp_path / "in/out"]


# Directory listings

ROW = '<tr><td><img src="/icons/x.gif" alt="[   ]"></td><td><a href="{0}">{0}</a></td><td>2013-05-12 06:06</td><td>{1}</td></tr>'


def listing(path: str, rows: dict[str, str]) -> str:
    sort = '<a href="?C=N;O=D">Name</a> <a href="?C=S;O=A">Size</a>'
    up = f'<a href="{path.rsplit("/", 2)[0]}/">Parent Directory</a> -'
    junk = '<a href="index.html@C=N;O=D">index.html@C=N;O=D</a> 12K <a href="https://httpd.apache.org/">Apache</a>'
    body = "".join(ROW.format(name, size) for name, size in rows.items())
    return f"<html><head><title>Index of {path}</title></head><body>{sort}{up}<table>{body}</table>{junk}</body></html>"


def test_listing_leaves_sort_links_parents_and_index_pages_out() -> None:
    html = listing("/data/s/", {"a%20b.png": " 65K", "image/": "  - ", "x.txt": "1.5M"})
    found = parse_listing(html, url="http://h/data/s/")
    assert found == [
        Entry("a b.png", False, 65 * 1024),
        Entry("image", True, None),
        Entry("x.txt", False, 1_572_864),
    ]


@pytest.mark.parametrize("href", ["../up.png", "/data/other/a.png", "http://elsewhere/data/s/a.png", "a%2fb.png", "./"])
def test_listing_leaves_links_elsewhere_out(href: str) -> None:
    assert parse_listing(listing("/data/s/", {href: "1K"}), url="http://h/data/s/") == []


def test_page_that_is_no_listing_is_refused() -> None:
    with pytest.raises(DataError, match=r"no directory listing .its title is 'Welcome'"):
        parse_listing("<title>Welcome</title><a href='a.png'>a</a>", url="http://h/data/")


SEQUENCE = {
    "/data/mit/apt/intrinsics.txt": b"570 0 320",
    "/data/mit/apt/image/0000001.jpg": BLOB[:70_000],
    "/data/mit/apt/image/0000002.jpg": BLOB[70_000:150_000],
    "/data/mit/apt/depth/0000001.png": BLOB[:9_000],
    "/data/mit/apt/depthTSDF/0000001.png": b"t",
}


@pytest.fixture
def sequence(site: Site) -> Tree:
    site.files |= SEQUENCE
    rows = {"intrinsics.txt": "15", "image/": "-", "depth/": "-", "depthTSDF/": "-"}
    site.pages["/data/mit/apt/"] = listing("/data/mit/apt/", rows)
    site.pages["/data/mit/apt/image/"] = listing("/data/mit/apt/image/", {"0000001.jpg": "68K", "0000002.jpg": "78K"})
    site.pages["/data/mit/apt/depth/"] = listing("/data/mit/apt/depth/", {"0000001.png": "9K"})
    return Tree(
        kind="tree",
        url=f"{site.url}/data/",
        folders=("mit/apt",),
        include=("intrinsics.txt", "image/*", "depth/*"),
    )


WANTED = [
    "mit/apt/depth/0000001.png",
    "mit/apt/image/0000001.jpg",
    "mit/apt/image/0000002.jpg",
    "mit/apt/intrinsics.txt",
]


def test_tree_fetches_what_is_included_and_reads_no_other_listing(site: Site, sequence: Tree, tmp_path: Path) -> None:
    found = fetch(sequence, tmp_path)
    assert [file.path for file in found.files] == WANTED
    assert content(sequence, tmp_path, WANTED[1]) == SEQUENCE["/data/mit/apt/image/0000001.jpg"]
    assert site.count("/data/mit/apt/depthTSDF/") == 0


def test_tree_continues_with_what_is_missing(site: Site, sequence: Tree, tmp_path: Path) -> None:
    site.statuses["/data/mit/apt/image/0000002.jpg"] = [404]
    with pytest.raises(DataError, match=r"0000002.jpg could not be downloaded(.|\n)*HTTP 404"):
        fetch(sequence, tmp_path)
    site.asked.clear()
    found = fetch(sequence, tmp_path)
    assert [file.path for file in found.files] == WANTED
    assert site.count("/data/mit/apt/image/0000002.jpg") == 1
    assert site.count("/data/mit/apt/intrinsics.txt") + site.count("/data/mit/apt/image/0000001.jpg") < 2


def test_tree_replaces_a_changed_file(site: Site, sequence: Tree, tmp_path: Path) -> None:
    before = fetch(sequence, tmp_path)
    (download.raw_folder("box", sequence, root=tmp_path) / WANTED[0]).write_bytes(b"cut")
    site.asked.clear()
    assert fetch(sequence, tmp_path) == before
    assert site.count("/data/mit/apt/depth/0000001.png") == 1
    assert site.count("/data/mit/apt/image/0000001.jpg") == 0


def test_complete_tree_needs_no_server(site: Site, sequence: Tree, tmp_path: Path) -> None:
    before = fetch(sequence, tmp_path)
    site.asked.clear()
    assert fetch(sequence, tmp_path) == before
    assert site.asked == []


def test_tree_falls_back_to_a_mirror(site: Site, sequence: Tree, tmp_path: Path) -> None:
    source = sequence.model_copy(update={"url": f"{site.url}/old/", "mirrors": (f"{site.url}/data",)})
    assert [file.path for file in fetch(source, tmp_path).files] == WANTED


def test_tree_without_a_match_says_so(site: Site, sequence: Tree, tmp_path: Path) -> None:
    source = sequence.model_copy(update={"include": ("*.ply",)})
    with pytest.raises(DataError, match=r"box: no files to fetch(.|\n)*nothing in \['mit/apt'\] matches \['\*.ply'\]"):
        fetch(source, tmp_path)


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("image/a.jpg", "image/*", True),
        ("image/x/a.jpg", "image/*", False),
        ("image/x/a.jpg", "**", True),
        ("a/b/c.png", "**/*.png", True),
        ("c.png", "**/*.png", True),
        ("a/b/c.png", "a/**", True),
        ("b/c.png", "a/**", False),
    ],
)
def test_globs(path: str, pattern: str, expected: bool) -> None:
    assert matches(path, pattern) is expected


@pytest.mark.parametrize(
    ("folder", "pattern", "expected"),
    [("image", "image/*", True), ("depth", "image/*", False), ("a/b", "**/*.png", True), ("image", "*", False)],
)
def test_folders_worth_listing(folder: str, pattern: str, expected: bool) -> None:
    assert may_contain(folder, pattern) is expected


# Copies that exist already


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_ino, path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name, body in {"scan1/a.png": b"one", "scan2/b.png": b"two", "notes.txt": b"n"}.items():
        (path := tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return tmp_path / "copy"


def test_folder_is_read_in_place_and_never_written(copy: Path, tmp_path: Path) -> None:
    source, before = Folder(kind="folder", path=copy, patterns=("*/*.png",)), snapshot(copy)
    assert download.raw_folder("box", source, root=tmp_path / "raw") == copy
    found = fetch(source, tmp_path / "raw")
    assert [file.path for file in found.files] == ["scan1/a.png", "scan2/b.png"]
    assert found.files[0].sha256 == sha256(b"one")
    assert snapshot(copy) == before
    assert str(copy) not in json.dumps(found.model_dump())


def test_unchanged_files_are_not_hashed_again(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Folder(kind="folder", path=copy)
    before = fetch(source, tmp_path / "raw")
    hashed = []
    monkeypatch.setattr(manifest, "sha256_file", lambda path: hashed.append(path.name) or "f" * 64)
    assert fetch(source, tmp_path / "raw") == before
    assert hashed == []
    os.utime(copy / "notes.txt", ns=(1, 1))
    assert fetch(source, tmp_path / "raw") != before
    assert hashed == ["notes.txt"]


def test_absent_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no folder. Check datasets.box.source.path in params.yaml"):
        fetch(Folder(kind="folder", path=tmp_path / "absent"), tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no file that matches \['\*\*'\]"):
        fetch(Folder(kind="folder", path=tmp_path / "empty"), tmp_path / "raw")


def test_folder_with_a_link_to_itself_ends(copy: Path, tmp_path: Path) -> None:
    (copy / "scan1" / "loop").symlink_to(copy)
    assert len(fetch(Folder(kind="folder", path=copy), tmp_path / "raw").files) == 3


def test_terms_say_what_to_do(tmp_path: Path) -> None:
    source = Terms(kind="terms", url="http://www.scan-net.org/", steps="Sign the form and run its script.")
    with pytest.raises(DataError) as caught:
        fetch(source, tmp_path, dataset="scannet")
    assert "Sign the form and run its script." in str(caught.value)
    assert "datasets.scannet.source to {kind: folder, path: <your copy>}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Generated files


class Settings(pydantic.BaseModel, extra="forbid"):
    scenes: int = 2


@pytest.fixture
def generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A generator whose code is a file that a test can edit and whose runs are counted."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "__init__.py").write_text("")
    runs: list[int] = []

    def generate(config: Settings, out: Path, *, progress: Callable[[str], None]) -> None:
        runs.append(config.scenes)
        for index in range(config.scenes):
            (out / f"{index}.txt").write_text("scene")
            progress(f"{index}")

    module = types.SimpleNamespace(
        Config=Settings, generate=generate, runs=runs, __file__=str(tmp_path / "code" / "__init__.py")
    )
    monkeypatch.setattr(plumbline.data, "synthetic", module, raising=False)
    return module


def test_generated_files_are_made_once_per_settings_and_code(tmp_path: Path, generator: types.SimpleNamespace) -> None:
    source = Synthetic(kind="synthetic")
    first = fetch(source, tmp_path / "raw")
    assert [file.path for file in first.files] == ["0.txt", "1.txt"]
    assert fetch(source, tmp_path / "raw") == first
    assert generator.runs == [2]
    three = Synthetic(kind="synthetic", settings={"scenes": 3})
    assert len(fetch(three, tmp_path / "raw").files) == 3
    assert fetch(source, tmp_path / "raw") == first
    assert generator.runs == [2, 3]
    Path(generator.__file__).write_text("# edited")
    fetch(source, tmp_path / "raw")
    (download.raw_folder("box", source, root=tmp_path / "raw") / "0.txt").unlink()
    assert fetch(source, tmp_path / "raw") == first
    assert generator.runs == [2, 3, 2, 2]


def test_wrong_generator_setting_names_its_key(tmp_path: Path, generator: types.SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match=r"datasets.box.source.settings in params.yaml: scens: Extra inputs"):
        fetch(Synthetic(kind="synthetic", settings={"scens": 3}), tmp_path / "raw")
    assert generator.runs == []


# Manifests


def test_manifest_has_a_line_a_file_and_reads_back(copy: Path, tmp_path: Path) -> None:
    found = fetch(Folder(kind="folder", path=copy), tmp_path / "raw")
    path = tmp_path / "out" / "box.json"
    manifest.write_manifest(path, found)
    lines = path.read_text().splitlines()
    assert sum("sha256" in line for line in lines) == 3
    assert manifest.read_manifest(path) == found
    first = path.read_bytes()
    manifest.write_manifest(path, found)
    assert path.read_bytes() == first


def test_verify_names_what_is_wrong_and_the_command(copy: Path, tmp_path: Path) -> None:
    found = fetch(Folder(kind="folder", path=copy), tmp_path / "raw")
    manifest.verify(found, copy, hashes=True)
    (copy / "notes.txt").write_bytes(b"N")
    manifest.verify(found, copy)
    with pytest.raises(DataError, match=r"notes.txt has SHA-256"):
        manifest.verify(found, copy, hashes=True)
    (copy / "scan1/a.png").unlink()
    (copy / "scan2/b.png").write_bytes(b"longer")
    with pytest.raises(DataError) as caught:
        manifest.verify(found, copy)
    message = str(caught.value)
    assert message.startswith(f"box: 2 of 3 raw files under {copy} are not what the manifest lists")
    assert "scan1/a.png is missing; scan2/b.png has 6 bytes, expected 3" in message
    assert '"dvc repro -f download@box"' in message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dataset": "box"}'])
def test_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "box.json").write_text(text)
    with pytest.raises(DataError, match=r'box.json: not a manifest(.|\n)*"dvc repro -f download@box"'):
        manifest.read_manifest(tmp_path / "box.json")


def test_cut_manifest_is_refused(copy: Path, tmp_path: Path) -> None:
    path = tmp_path / "box.json"
    manifest.write_manifest(path, fetch(Folder(kind="folder", path=copy), tmp_path / "raw"))
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "scan1/a.png" not in line))
    with pytest.raises(DataError, match="was cut or edited"):
        manifest.read_manifest(path)


# Folders, locks and progress


def test_other_settings_get_another_folder_and_other_mirrors_do_not(tmp_path: Path) -> None:
    first = plain("http://h/a.bin", sha256="0" * 64)
    mirrored = plain("http://other/a.bin", sha256="0" * 64, mirrors=["http://h/a.bin"])
    other = plain("http://h/a.bin", sha256="1" * 64)
    folders = [download.raw_folder("box", source, root=tmp_path) for source in (first, mirrored, other)]
    assert folders[0] == folders[1] != folders[2]
    assert folders[0].parent == tmp_path
    assert len(folders[0].name) == len("box-") + 8


def test_second_process_waits_for_the_lock(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site.files["/a.bin"] = BLOB
    source = plain(f"{site.url}/a.bin")
    work = work_folder("box", source, root=tmp_path)
    work.mkdir(parents=True)
    lock = filelock.FileLock(work / "lock")
    lock.acquire()
    waiting = threading.Thread(target=fetch, args=(source, tmp_path))
    waiting.start()
    waiting.join(timeout=0.3)
    assert waiting.is_alive()
    assert site.asked == []
    lock.release()
    waiting.join(timeout=10)
    assert "box: these files are being fetched by another process; waiting" in caplog.text
    assert content(source, tmp_path, "a.bin") == BLOB


def test_progress_says_rate_and_time_left_now_and_then() -> None:
    clock, said = iter([0.0, 4.0, 11.0, 12.0, 12.0]), []
    with progress.lines("a.rar", 10_000_000, done=1_000_000, write=said.append, clock=lambda: next(clock)) as advance:
        for count in (2_000_000, 1_400_000, 0):
            advance(count)
    assert said == [
        "a.rar: 4.4 MB of 10.0 MB (44 %), 309 kB/s, 18 s left",
        "a.rar: 4.4 MB of 10.0 MB (44 %), 283 kB/s, 20 s left",
    ]
    assert progress.human_time(3900) == "65 min"
    assert progress.human_time(11_100) == "3 h 05 min"
