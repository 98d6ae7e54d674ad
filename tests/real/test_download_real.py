"""Listings as SUN3D's server really gives them."""

from pathlib import Path

import pytest

from plumbline.data.listings import parse_listing

SERVER = "http://sun3d.cs.princeton.edu"


def pages(real_data: Path) -> list[Path]:
    found = sorted((real_data / "sun3d_harvard").rglob("index.html*"))
    if not found:
        pytest.skip("no stored listing below sun3d_harvard")
    return found


def test_real_listings_are_read(real_data: Path) -> None:
    for page in pages(real_data):
        folder = page.parent.relative_to(real_data / "sun3d_harvard").as_posix()
        entries = parse_listing(page.read_text(), url=f"{SERVER}/data/{folder}/")
        names = [entry.name for entry in entries]
        present = {path.name for path in page.parent.iterdir() if not path.name.startswith("index.html")}
        assert present <= set(names)
        assert len(names) == len(set(names)) > 500
        assert not any(entry.is_folder or "?" in entry.name or "index" in entry.name for entry in entries)


def test_real_listing_gives_the_known_size(real_data: Path) -> None:
    page = real_data / "sun3d_harvard/harvard_tea_2/hv_tea2_2/depth/index.html"
    if not page.exists():
        pytest.skip("the listing of hv_tea2_2/depth is not stored here")
    entries = parse_listing(page.read_text(), url=f"{SERVER}/data/harvard_tea_2/hv_tea2_2/depth/")
    assert len(entries) == 583
    assert sum(entry.size or 0 for entry in entries) == pytest.approx(39.5e6, rel=0.05)
    for entry in entries:
        stored = page.parent / entry.name
        assert not stored.exists() or stored.stat().st_size == pytest.approx(entry.size, abs=1024)
