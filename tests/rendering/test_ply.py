"""Gaussians as PLY: what viewers expect byte by byte, back again through our reader and through plyfile."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
from torch import Tensor

from plumbline.errors import DataError
from plumbline.files import write_ply
from plumbline.quaternions import to_matrices, to_quaternions
from plumbline.rendering import Gaussians, render
from plumbline.rendering.harmonics import basis
from plumbline.rendering.ply import (
    property_names,
    read_gaussians,
    scales_and_rotations,
    write_gaussians,
)
from rendering_scenes import SIZE, cameras, gaussians, rotations


def made(n: int = 20, degree: int = 2) -> Gaussians:
    """Gaussians that know the scales and rotations of which their covariances are."""
    generator = torch.Generator().manual_seed(4)
    scene = gaussians(n, degree=degree, grad=False)
    scales = 0.01 + torch.rand(1, n, 3, generator=generator)
    matrices = rotations((1, n), generator, torch.float32)
    axes = matrices * scales[..., None, :]
    opacities = scene.opacities.clamp(0.001, 0.999)
    return replace(
        scene, covariances=axes @ axes.mT, scales=scales, rotations=to_quaternions(matrices), opacities=opacities
    )


def close(found: Tensor | None, expected: Tensor | None, tolerance: float = 1e-5) -> None:
    assert found is not None and expected is not None
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_back_again(tmp_path: Path, degree: int) -> None:
    scene = made(degree=degree)
    write_gaussians(tmp_path / "scene.ply", scene)
    found = read_gaussians(tmp_path / "scene.ply")
    for name in ("means", "covariances", "harmonics", "opacities", "scales"):
        close(getattr(found, name), getattr(scene, name))
    assert found.rotations is not None and scene.rotations is not None
    close(to_matrices(found.rotations), to_matrices(scene.rotations))


def test_plyfile_reads_what_viewers_expect(tmp_path: Path) -> None:
    scene = made()
    write_gaussians(tmp_path / "scene.ply", scene)
    ply = plyfile.PlyData.read(str(tmp_path / "scene.ply"))
    assert (ply.byte_order, ply.text, [element.name for element in ply.elements]) == ("<", False, ["vertex"])
    vertex = ply["vertex"]
    assert [each.name for each in vertex.properties] == property_names(9)
    assert all(each.val_dtype == "f4" for each in vertex.properties)
    assert len(property_names(16)) == 62
    close(torch.tensor(np.stack([vertex[axis] for axis in "xyz"], axis=-1)), scene.means[0])
    # All of red's coefficients, then green's, then blue's.
    close(torch.tensor(vertex["f_dc_1"].copy()), scene.harmonics[0, :, 1, 0])
    close(torch.tensor(vertex["f_rest_7"].copy()), scene.harmonics[0, :, 0, 8])
    close(torch.tensor(vertex["f_rest_8"].copy()), scene.harmonics[0, :, 1, 1])
    close(torch.tensor(vertex["opacity"].copy()).sigmoid(), scene.opacities[0])
    assert scene.scales is not None and scene.rotations is not None
    close(torch.tensor(vertex["scale_2"].copy()).exp(), scene.scales[0, :, 2])
    # w first.
    stored = torch.tensor(np.stack([vertex[f"rot_{i}"] for i in range(4)], axis=-1))
    close(stored[:, 0], scene.rotations[0, :, 3])
    close(stored[:, 1], scene.rotations[0, :, 0])


def test_our_reader_takes_what_plyfile_writes(tmp_path: Path) -> None:
    """Other orders and types of properties, some that we do not know, elements behind the vertices, big-endian."""
    scene = made(5, degree=1)
    write_gaussians(tmp_path / "ours.ply", scene)
    vertex = plyfile.PlyData.read(str(tmp_path / "ours.ply"))["vertex"].data
    names = [*reversed([name for name in vertex.dtype.names if not name.startswith("n")]), "label"]
    mixed = np.zeros(len(vertex), [(name, "f8" if name == "x" else "f4") for name in names])
    for name in names[:-1]:
        mixed[name] = vertex[name]
    faces = np.zeros(2, [("id", "i4")])
    elements = [plyfile.PlyElement.describe(mixed, "vertex"), plyfile.PlyElement.describe(faces, "extra")]
    plyfile.PlyData(elements, byte_order=">").write(str(tmp_path / "theirs.ply"))
    found = read_gaussians(tmp_path / "theirs.ply")
    for name in ("means", "covariances", "harmonics", "opacities"):
        close(getattr(found, name), getattr(scene, name))


def test_scales_and_rotations_are_found_where_only_covariances_are_known(tmp_path: Path) -> None:
    scene = made()
    write_gaussians(tmp_path / "scene.ply", replace(scene, scales=None, rotations=None))
    found = read_gaussians(tmp_path / "scene.ply")
    close(found.covariances, scene.covariances)
    assert found.rotations is not None
    assert torch.linalg.det(to_matrices(found.rotations)).tolist() == [pytest.approx([1.0] * 20, abs=1e-5)]


def test_a_written_scene_renders_as_it_did(tmp_path: Path) -> None:
    """Also from e3nn's order: what is stored has the standard one."""
    scene, views = made(120), cameras()
    write_gaussians(tmp_path / "permuted.ply", scene, harmonics="e3nn")
    stored = read_gaussians(tmp_path / "permuted.ply").harmonics
    directions = torch.nn.functional.normalize(torch.randn(1, 120, 3), dim=-1)
    expected = (scene.harmonics * basis(directions, 2, "e3nn")[:, :, None]).sum(-1)
    close((stored * basis(directions, 2)[:, :, None]).sum(-1), expected)
    write_gaussians(tmp_path / "scene.ply", scene)
    again = render(read_gaussians(tmp_path / "scene.ply"), views, SIZE, backend="torch")
    difference = (again.colour - render(scene, views, SIZE, backend="torch").colour).abs()
    assert float(difference.mean()) < 1e-5
    assert float(difference.max()) < 0.01


def test_extreme_values_are_held_where_they_have_a_logarithm(tmp_path: Path) -> None:
    scene = made(2)
    scene = replace(scene, opacities=torch.tensor([[0.0, 1.0]]), scales=torch.zeros(1, 2, 3))
    write_gaussians(tmp_path / "scene.ply", scene)
    found = read_gaussians(tmp_path / "scene.ply")
    assert found.opacities[0].tolist() == pytest.approx([0, 1], abs=1e-5)
    assert found.scales is not None
    assert float(found.scales.max()) <= 1e-11


def test_quaternions_of_half_turns() -> None:
    """Where the usual formula divides by 0."""
    halves = torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]]).double())
    torch.testing.assert_close(to_matrices(to_quaternions(halves)), halves)
    some = rotations((50,), torch.Generator().manual_seed(0), torch.float64)
    torch.testing.assert_close(to_matrices(to_quaternions(some)), some)
    scales, quaternions = scales_and_rotations(some @ torch.diag(torch.tensor([4.0, 0.01, 1.0]).double()) @ some.mT)
    torch.testing.assert_close(scales, torch.tensor([0.1, 1.0, 2.0]).double().expand(50, 3))
    axes = to_matrices(quaternions) * scales[:, None]
    torch.testing.assert_close(axes @ axes.mT, some @ torch.diag(torch.tensor([4.0, 0.01, 1.0]).double()) @ some.mT)


def test_messages(tmp_path: Path) -> None:
    path = tmp_path / "scene.ply"
    with pytest.raises(DataError, match="no such file"):
        read_gaussians(path)
    with pytest.raises(ValueError, match="Gaussians of 2 scenes; a file holds one"):
        write_gaussians(path, gaussians(3, b=2))
    path.write_bytes(b"solid")
    with pytest.raises(DataError, match="not a PLY file"):
        read_gaussians(path)
    write_ply(path, np.zeros((4, 3), np.float32), np.zeros((4, 3), np.uint8))
    with pytest.raises(DataError, match=r"a PLY without f_dc_0, f_dc_1, f_dc_2, opacity, .* plain point cloud"):
        read_gaussians(path)
    write_gaussians(path, made(6))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"983 bytes of vertices, expected 6 of 164\. The file is cut"):
        read_gaussians(path)
    path.write_bytes(whole.replace(b"binary_little_endian", b"ascii"))
    with pytest.raises(DataError, match="a text PLY"):
        read_gaussians(path)
    path.write_bytes(whole.replace(b"property float f_rest_23\n", b"property float other\n"))
    with pytest.raises(DataError, match=r"23 properties f_rest_\*; expected 0, 9, 24 or 45"):
        read_gaussians(path)
    path.write_bytes(whole.replace(b"element vertex", b"element chunk"))
    with pytest.raises(DataError, match=r"first element is chunk, expected vertex\. Compressed"):
        read_gaussians(path)
    path.write_bytes(whole[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(DataError, match="holds NaN"):
        read_gaussians(path)
    assert [each.name for each in tmp_path.iterdir()] == ["scene.ply"]
