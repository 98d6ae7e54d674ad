"""Loops over tiles that numba compiles: sorting into tiles, compositing forward, and back with exact derivatives.

A tile's pixels lie side by side in one buffer, a row of it for each quantity, and the innermost loops run over them
without branches: the compiler turns those into vector instructions. Arrays are C-contiguous; columns of a packed splat are
those of `compositing`.
"""

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

SIDE = 8
PIXELS = SIDE * SIDE
# No NaN or infinity is made, but order of sums and fused multiply-adds are the compiler's choice.
_FAST = {"contract", "reassoc", "nsz", "arcp", "nnan", "ninf"}
_jit = njit(cache=True, fastmath=_FAST, nogil=True, error_model="numpy")
# exp(x / 8) on [-1, 0.1], least relative error; raised to the eighth power it is exp to single precision.
_LEAST = -8.0


def exponential(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0.8, in double precision; below -8, where no splat counts any more, float32 may give exp(-8)."""
    return math.exp(x)


@overload(exponential, inline="always")
def _exponential(x):  # type: ignore[no-untyped-def]
    if x == types.float32:

        def single(x):  # type: ignore[no-untyped-def]
            t = max(x, np.float32(-8.0)) * np.float32(0.125)
            p = np.float32(1 / 5040)
            p = p * t + np.float32(1 / 720)
            p = p * t + np.float32(1 / 120)
            p = p * t + np.float32(1 / 24)
            p = p * t + np.float32(1 / 6)
            p = p * t + np.float32(0.5)
            p = p * t + np.float32(1.0)
            p = p * t + np.float32(1.0)
            p = p * p
            p = p * p
            return p * p

        return single
    return lambda x: math.exp(x)


@_jit
def tile_counts(order, box, columns, counts):  # type: ignore[no-untyped-def]
    """How many splats reach each tile."""
    for rank in range(order.shape[0]):
        splat = order[rank]
        for row in range(box[splat, 1] // SIDE, (box[splat, 3] + SIDE - 1) // SIDE):
            for column in range(box[splat, 0] // SIDE, (box[splat, 2] + SIDE - 1) // SIDE):
                counts[row * columns + column] += 1


@_jit
def fill_tiles(order, box, columns, places, splats):  # type: ignore[no-untyped-def]
    """Write each splat's index to the tiles that it reaches; `places` is where each tile's next one goes."""
    for rank in range(order.shape[0]):
        splat = order[rank]
        for row in range(box[splat, 1] // SIDE, (box[splat, 3] + SIDE - 1) // SIDE):
            for column in range(box[splat, 0] // SIDE, (box[splat, 2] + SIDE - 1) // SIDE):
                tile = row * columns + column
                splats[places[tile]] = splat
                places[tile] += 1


@_jit
def _place_pixels(buffer, tile, columns):  # type: ignore[no-untyped-def]
    top, left = tile // columns * SIDE, tile % columns * SIDE
    for p in range(PIXELS):
        buffer[p] = left + p % SIDE
        buffer[1 * PIXELS + p] = top + p // SIDE


@_jit
def forward(packed, splats, starts, columns, limits, picture):  # type: ignore[no-untyped-def]
    """Composite all tiles; `limits`: least opacity, cap, least transmittance. picture is [5, rows, columns] of pixels."""
    least, cap, stop = limits[0], limits[1], limits[2]
    # x, y, transmittance, red, green, blue, z, alpha
    buffer = np.empty(8 * PIXELS, packed.dtype)
    one, zero, half = packed.dtype.type(1), packed.dtype.type(0), packed.dtype.type(0.5)
    for tile in range(starts.shape[0] - 1):
        _place_pixels(buffer, tile, columns)
        for p in range(PIXELS):
            buffer[2 * PIXELS + p] = one
        buffer[3 * PIXELS :] = zero
        for at in range(starts[tile], starts[tile + 1]):
            s = packed[splats[at]]
            u, v, xx, xy, yy, opacity = s[0], s[1], -half * s[2], -s[3], -half * s[4], s[5]
            red, green, blue, z = s[6], s[7], s[8], s[9]
            open_ = zero
            for p in range(PIXELS):
                dx, dy = buffer[p] - u, buffer[1 * PIXELS + p] - v
                raw = exponential(xx * dx * dx + xy * dx * dy + yy * dy * dy + opacity)
                alpha = min(raw, cap)
                before = buffer[2 * PIXELS + p]
                after = before * (one - alpha)
                seen = raw >= least
                kept = seen and after >= stop
                weight = alpha * before if kept else zero
                # Once a splat is dropped for want of transmittance, 0 drops all that follow.
                after = after if kept else (zero if seen else before)
                buffer[2 * PIXELS + p] = after
                open_ += after
                buffer[3 * PIXELS + p] += weight * red
                buffer[4 * PIXELS + p] += weight * green
                buffer[5 * PIXELS + p] += weight * blue
                buffer[6 * PIXELS + p] += weight * z
                buffer[7 * PIXELS + p] += weight
            if open_ == zero:
                break
        top, left = tile // columns * SIDE, tile % columns * SIDE
        for row in range(min(SIDE, picture.shape[1] - top)):
            for column in range(min(SIDE, picture.shape[2] - left)):
                for channel in range(5):
                    picture[channel, top + row, left + column] = buffer[(3 + channel) * PIXELS + row * SIDE + column]


@_jit
def backward(packed, splats, starts, columns, limits, through_cap, picture, gradient, found):  # type: ignore[no-untyped-def]
    """Add the gradients by the packed columns to `found`; `through_cap`: 1 where the cap is no obstacle to them, else 0."""
    least, cap, stop = limits[0], limits[1], limits[2]
    # x, y, transmittance, what is behind, gradients of red, green, blue, z, alpha
    buffer = np.empty(9 * PIXELS, packed.dtype)
    one, zero, half = packed.dtype.type(1), packed.dtype.type(0), packed.dtype.type(0.5)
    height, width = picture.shape[1], picture.shape[2]
    for tile in range(starts.shape[0] - 1):
        if starts[tile] == starts[tile + 1]:
            continue
        _place_pixels(buffer, tile, columns)
        buffer[2 * PIXELS :] = zero
        top, left = tile // columns * SIDE, tile % columns * SIDE
        for row in range(min(SIDE, height - top)):
            for column in range(min(SIDE, width - left)):
                p = row * SIDE + column
                buffer[2 * PIXELS + p] = one
                for channel in range(5):
                    slope = gradient[channel, top + row, left + column]
                    buffer[(4 + channel) * PIXELS + p] = slope
                    buffer[3 * PIXELS + p] += slope * picture[channel, top + row, left + column]
        for at in range(starts[tile], starts[tile + 1]):
            index = splats[at]
            s = packed[index]
            u, v, xx, xy, yy, opacity = s[0], s[1], -half * s[2], -s[3], -half * s[4], s[5]
            red, green, blue, z = s[6], s[7], s[8], s[9]
            open_ = zero
            m, m_x, m_y, m_xx, m_xy, m_yy = zero, zero, zero, zero, zero, zero
            by_red, by_green, by_blue, by_z = zero, zero, zero, zero
            for p in range(PIXELS):
                dx, dy = buffer[p] - u, buffer[1 * PIXELS + p] - v
                raw = exponential(xx * dx * dx + xy * dx * dy + yy * dy * dy + opacity)
                alpha = min(raw, cap)
                before = buffer[2 * PIXELS + p]
                left_over = one - alpha
                after = before * left_over
                seen = raw >= least
                kept = seen and after >= stop
                weight = alpha * before if kept else zero
                after = after if kept else (zero if seen else before)
                buffer[2 * PIXELS + p] = after
                open_ += after
                worth = red * buffer[4 * PIXELS + p] + green * buffer[5 * PIXELS + p] + blue * buffer[6 * PIXELS + p] + z * buffer[7 * PIXELS + p] + buffer[8 * PIXELS + p]
                behind = buffer[3 * PIXELS + p] - weight * worth
                buffer[3 * PIXELS + p] = behind
                slope = raw * (before * worth - behind / left_over)
                slope = slope if kept else zero
                slope = slope * through_cap if raw > cap else slope
                by_red += weight * buffer[4 * PIXELS + p]
                by_green += weight * buffer[5 * PIXELS + p]
                by_blue += weight * buffer[6 * PIXELS + p]
                by_z += weight * buffer[7 * PIXELS + p]
                s_x, s_y = slope * dx, slope * dy
                m += slope
                m_x += s_x
                m_y += s_y
                m_xx += s_x * dx
                m_xy += s_x * dy
                m_yy += s_y * dy
            row_found = found[index]
            row_found[0] -= 2 * xx * m_x + xy * m_y
            row_found[1] -= xy * m_x + 2 * yy * m_y
            row_found[2] -= half * m_xx
            row_found[3] -= m_xy
            row_found[4] -= half * m_yy
            row_found[5] += m
            row_found[6] += by_red
            row_found[7] += by_green
            row_found[8] += by_blue
            row_found[9] += by_z
            if open_ == zero:
                break
