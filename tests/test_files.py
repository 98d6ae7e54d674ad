"""Atomic writes and codecs: round trips, and broken files by their message."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from plumbline import files
from plumbline.errors import DataError


def test_atomic_path_leaves_nothing_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []


def test_atomic_path_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with files.atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_atomic_folder_replaces_and_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for content in ("first", "second"):
        with files.atomic_folder(target) as temporary:
            (temporary / "x").write_text(content)
    assert (target / "x").read_text() == "second"
    with pytest.raises(RuntimeError), files.atomic_folder(target):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "size", [(3, 5), (128, 160), (1100, 40)], ids=["tiny", "rows scattered", "more rows than one call"]
)
def test_pfm_round_trip_is_exact_and_upright(tmp_path: Path, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(size, np.float32)
    files.write_pfm(tmp_path / "a.pfm", image)
    np.testing.assert_array_equal(files.read_pfm(tmp_path / "a.pfm"), image)
    raw = (tmp_path / "a.pfm").read_bytes()
    first_stored = np.frombuffer(raw[-image.nbytes :], "<f4")[: size[1]]
    np.testing.assert_array_equal(first_stored, image[-1])


def test_pfm_of_the_other_byte_order(tmp_path: Path) -> None:
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "big.pfm").write_bytes(b"Pf\n3 2\n1.0\n" + image[::-1].astype(">f4").tobytes())
    np.testing.assert_array_equal(files.read_pfm(tmp_path / "big.pfm"), image)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PF\n1 1\n-1\n" + bytes(12), "expected b'Pf'"),
        (b"Pf\n2 2\n-1\n" + bytes(12), "a 2x2 PFM has"),
        (b"Pf\n2 2\n0\n" + bytes(16), "holds a zero"),
        (b"Pf\nx 2\n-1\n" + bytes(16), "not a depth PFM"),
        (b"", "not a depth PFM"),
    ],
)
def test_broken_pfm_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.pfm").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        files.read_pfm(tmp_path / "bad.pfm")
    assert "bad.pfm" in str(error.value)


def test_png16_round_trip_and_its_defects(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    path = tmp_path / "d.png"
    files.write_png16(path, image)
    np.testing.assert_array_equal(files.read_png16(path), image)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="may be cut"):
        files.read_png16(path)
    files.write_png(path, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="expected one channel of 16 bits"):
        files.read_png16(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        files.read_png16(path)
    with pytest.raises(DataError, match="no such file"):
        files.read_image(tmp_path / "absent.jpg")


def test_colour_channels_keep_their_order(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 255
    files.write_png(tmp_path / "red.png", image)
    np.testing.assert_array_equal(files.read_image(tmp_path / "red.png"), image)
    files.write_jpg(tmp_path / "red.jpg", image)
    assert files.read_image(tmp_path / "red.jpg")[..., 0].min() > 240


def test_ply_header_and_vertices(tmp_path: Path) -> None:
    points, colours = np.array([[1, 2, 3], [4, 5, 6]], np.float32), np.array([[7, 8, 9], [1, 1, 1]], np.uint8)
    files.write_ply(tmp_path / "p.ply", points, colours)
    head, body = (tmp_path / "p.ply").read_bytes().split(b"end_header\n")
    assert b"element vertex 2" in head
    assert struct.unpack("<3f3B", body[:15]) == (1, 2, 3, 7, 8, 9)


def test_json_refuses_nan_and_names_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json: not valid JSON"):
        files.read_json(tmp_path / "b.json")
    files.write_json(tmp_path / "c.json", {"x": 1})
    assert json.loads((tmp_path / "c.json").read_text()) == {"x": 1}


def test_npy_with_objects_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a readable array"):
        files.read_npy(tmp_path / "o.npy")
