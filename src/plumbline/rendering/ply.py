"""Gaussians in the PLY layout of 3-D Gaussian splatting, which common viewers open.

A vertex holds x y z, nx ny nz (0), f_dc_0..2, f_rest_* (all of red's coefficients, then green's, then blue's), the opacity's
logit, logarithms of the scales, and the rotation as w x y z. Source: the files that the code of Kerbl et al. (2023) writes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from plumbline.errors import DataError
from plumbline.files import atomic_path
from plumbline.quaternions import to_matrices, to_quaternions
from plumbline.rendering.gaussians import Gaussians
from plumbline.rendering.harmonics import Order, degree_of, to_standard

# Opacities of 0 and 1 have no logit, scales of 0 no logarithm: they are held this far away.
_EDGE, _THIN = 1e-6, 1e-12
_TYPES = {
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("int", "int32"), "i4"),
}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_PLACE, _DIRECT = ("x", "y", "z"), ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES, _ROTATION = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")


def write_gaussians(path: Path, gaussians: Gaussians, *, harmonics: Order = "standard") -> None:
    """Write the one scene of `gaussians`, atomically, in its world frame and unit.

    `harmonics` says in which order the coefficients are (e3nn's are converted exactly). Scales and rotations are taken from
    the covariances where they are not given.
    """
    if len(gaussians.means) != 1:
        raise ValueError(
            f"Gaussians of {len(gaussians.means)} scenes; a file holds one: choose it with .rows(slice(i, i + 1))"
        )
    one = gaussians.detach().to("cpu", torch.float64)
    if harmonics == "e3nn":
        one = replace(one, harmonics=to_standard(one.harmonics))
    scales, rotations = (one.scales, one.rotations) if one.scales is not None else (None, None)
    if scales is None or rotations is None:
        scales, rotations = scales_and_rotations(one.covariances)
    opacities = one.opacities.clamp(_EDGE, 1 - _EDGE)
    columns = [
        one.means,
        torch.zeros_like(one.means),
        one.harmonics[..., 0],
        one.harmonics[..., 1:].flatten(-2),
        opacities.logit()[..., None],
        scales.clamp(min=_THIN).log(),
        torch.nn.functional.normalize(rotations, dim=-1).roll(1, dims=-1),
    ]
    _write(path, property_names(one.harmonics.shape[-1]), torch.cat(columns, dim=-1)[0].to(torch.float32).numpy())


def property_names(coefficients: int) -> list[str]:
    """The properties of a vertex, in their usual order, for so many coefficients a channel."""
    rest = [f"f_rest_{i}" for i in range(3 * (coefficients - 1))]
    return [*_PLACE, "nx", "ny", "nz", *_DIRECT, *rest, "opacity", *_SCALES, *_ROTATION]


def _write(path: Path, names: Sequence[str], rows: Float32[np.ndarray, "n c"]) -> None:
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    lines += [f"property float {name}" for name in names]
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join([*lines, "end_header", ""]).encode() + rows.astype("<f4").tobytes())


def scales_and_rotations(
    covariances: Float[Tensor, "*n 3 3"],
) -> tuple[Float[Tensor, "*n 3"], Float[Tensor, "*n 4"]]:
    """Standard deviations, ascending, and the quaternions (x, y, z, w) of the axes that they lie along."""
    values, axes = torch.linalg.eigh((covariances + covariances.mT) / 2)
    axes = torch.cat([axes[..., :2], axes[..., 2:] * torch.linalg.det(axes)[..., None, None].sign()], dim=-1)
    return values.clamp(min=0).sqrt(), to_quaternions(axes)


def read_gaussians(path: Path) -> Gaussians:
    """The Gaussians of a file, as one scene, float32 on the CPU; properties it holds besides are ignored.

    DataError: no PLY, text or compressed, cut, or without the properties of 3-D Gaussian splatting.
    """
    vertices = _vertices(path)
    names = vertices.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in names)
    try:
        degree_of(rest // 3 + 1)
        expected = property_names(rest // 3 + 1)
    except ValueError as error:
        raise DataError(f"{path}: {rest} properties f_rest_*; expected 0, 9, 24 or 45 (degree 0 to 3).") from error
    missing = [name for name in expected if name not in names and name not in ("nx", "ny", "nz")]
    if missing:
        raise DataError(
            f"{path}: a PLY without {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}; expected the properties of "
            "3-D Gaussian splatting. Is it a plain point cloud, or compressed? Export it uncompressed."
        )
    return _gaussians(path, vertices, rest)


def _gaussians(path: Path, vertices: np.ndarray, rest: int) -> Gaussians:
    def columns(names: Sequence[str]) -> Tensor:
        stacked = np.stack([vertices[name] for name in names], axis=-1) if names else np.empty((len(vertices), 0))
        return torch.from_numpy(stacked.astype(np.float64))

    further = columns([f"f_rest_{i}" for i in range(rest)]).reshape(len(vertices), 3, rest // 3)
    harmonics = torch.cat([columns(_DIRECT)[..., None], further], dim=-1)
    scales, rotations = columns(_SCALES).exp(), columns(_ROTATION).roll(-1, dims=-1)
    if not all(value.isfinite().all() for value in (harmonics, scales, rotations)) or not rotations.any(dim=-1).all():
        raise DataError(f"{path}: holds NaN, infinity or a rotation of length 0. Was the training that wrote it sound?")
    axes = to_matrices(rotations) * scales[:, None]
    values = (columns(_PLACE), axes @ axes.mT, harmonics, columns(["opacity"])[:, 0].sigmoid(), scales)
    rotations = torch.nn.functional.normalize(rotations, dim=-1)
    return Gaussians(*(value[None].to(torch.float32) for value in (*values, rotations)))


def _vertices(path: Path) -> np.ndarray:
    """The vertices of a binary PLY whose first element they are, as a structured array."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    head, separator, body = raw.partition(b"end_header\n")
    lines = head.decode("ascii", errors="replace").split("\n")
    if not separator or lines[0].strip() != "ply":
        raise DataError(f"{path}: not a PLY file, or its header is cut.")
    count, dtype = _layout(path, [line.split() for line in lines[1:] if line.strip()])
    if len(body) < count * dtype.itemsize:
        raise DataError(
            f"{path}: {len(body)} bytes of vertices, expected {count} of {dtype.itemsize}. The file is cut: copy it again."
        )
    return np.frombuffer(body, dtype, count)


def _layout(path: Path, lines: Sequence[Sequence[str]]) -> tuple[int, np.dtype]:
    order, count, element, fields = None, 0, "", list[tuple[str, str]]()
    for words in lines:
        if words[0] == "format":
            order = _ORDERS.get(words[1])
        elif words[0] == "element":
            if not element and words[1] != "vertex":
                raise DataError(
                    f"{path}: its first element is {words[1]}, expected vertex. Compressed? Export it plainly."
                )
            element, count = (words[1], int(words[2])) if not element else ("done", count)
        elif words[0] == "property" and element == "vertex":
            if order is None or words[1] not in _TYPES:
                raise DataError(f"{path}: a text PLY, or one with lists; expected binary numbers. Export it as binary.")
            fields.append((words[2], order + _TYPES[words[1]]))
    return count, np.dtype(fields)
