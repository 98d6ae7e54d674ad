"""Reading a depth map of 1200x1600 from a PFM file, against the reader that most MVS projects copy."""

import re
from pathlib import Path

import numpy as np

from plumbline.files import read_pfm, write_pfm
from timing import Bench, Contender


def common_read_pfm(filename: str) -> tuple[np.ndarray, float]:
    """The reader as it is copied from project to project."""
    with open(filename, "rb") as file:  # noqa: PTH123
        header = file.readline().decode("utf-8").rstrip()
        color = header == "PF"
        if header not in ("PF", "Pf"):
            raise ValueError("Not a PFM file.")
        dim_match = re.match(r"^(\d+)\s(\d+)\s$", file.readline().decode("utf-8"))
        if not dim_match:
            raise ValueError("Malformed PFM header.")
        width, height = map(int, dim_match.groups())
        scale = float(file.readline().rstrip())
        endian = "<" if scale < 0 else ">"
        data = np.fromfile(file, endian + "f")
    shape = (height, width, 3) if color else (height, width)
    return np.flipud(np.reshape(data, shape)), abs(scale)


def benches(folder: Path) -> list[Bench]:
    """One full-size DTU depth map, read again and again from a warm cache."""
    path = folder / "depth.pfm"
    write_pfm(path, np.random.default_rng(0).random((1200, 1600), dtype=np.float32))
    buffer = bytearray(path.stat().st_size)

    def peer() -> np.ndarray:
        return np.array(common_read_pfm(str(path))[0], dtype=np.float32)

    def raw() -> int:
        with path.open("rb", buffering=0) as file:
            return file.readinto(buffer)

    return [
        Bench(
            "pfm_read_1200x1600",
            Contender("the common PFM reader + np.array", peer),
            Contender("files.read_pfm", lambda: read_pfm(path)),
            target=5.0,
            check=lambda: np.testing.assert_array_equal(read_pfm(path), peer()),
            limit=Contender("readinto a warm buffer", raw),
        )
    ]
