"""Loops over tiles that numba compiles: sorting into tiles, compositing forward, and back with exact derivatives.

A tile's pixels lie side by side in one flat buffer, quantity after quantity, and the innermost loops run over them without
branches: the compiler turns those into vector instructions (measured: 4 times faster; a maximum over the pixels, or a
second array written in the loop, prevents it). Arrays are C-contiguous; the columns of a packed splat are those of
`compositing`.
"""

import math
from typing import no_type_check

import numpy as np
from numba import njit, types
from numba.extending import overload

SIDE = 8
PIXELS = SIDE * SIDE
# No NaN or infinity is made; the order of sums and fused multiply-adds are the compiler's choice.
_jit = njit(
    cache=True, fastmath={"contract", "reassoc", "nsz", "arcp", "nnan", "ninf"}, nogil=True, error_model="numpy"
)


@no_type_check
def exponential(x):
    """exp(x) of x <= 0.1, to the precision of x; of float32 below -8, where no splat counts any more, exp(-8)."""
    return math.exp(x)


@no_type_check
@overload(exponential, inline="always")
def _exponential(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    @no_type_check
    def single(x):
        # The series of exp(x / 8), to the eighth power: unlike a call of exp it stays within the vector loop.
        t = max(x, np.float32(-8.0)) * np.float32(0.125)
        p = np.float32(1 / 40320) * t + np.float32(1 / 5040)
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


@no_type_check
@_jit
def tile_counts(order, box, columns, counts):
    """Count in `counts` how many of the splats `order` reach each tile; `box` holds the ends of their pixels."""
    for rank in range(order.shape[0]):
        splat = order[rank]
        for row in range(box[splat, 1] // SIDE, (box[splat, 3] + SIDE - 1) // SIDE):
            for column in range(box[splat, 0] // SIDE, (box[splat, 2] + SIDE - 1) // SIDE):
                counts[row * columns + column] += 1


@no_type_check
@_jit
def fill_tiles(order, box, columns, places, splats):
    """Write each splat's index to the tiles that it reaches; `places` is where each tile's next one goes."""
    for rank in range(order.shape[0]):
        splat = order[rank]
        for row in range(box[splat, 1] // SIDE, (box[splat, 3] + SIDE - 1) // SIDE):
            for column in range(box[splat, 0] // SIDE, (box[splat, 2] + SIDE - 1) // SIDE):
                tile = row * columns + column
                splats[places[tile]] = splat
                places[tile] += 1


@no_type_check
@_jit
def forward(packed, splats, starts, columns, limits, picture):
    """Composite all tiles into `picture` [5, h, w]; `limits`: least opacity, cap, least transmittance."""
    # x, y, transmittance, red, green, blue, z, alpha
    buffer = np.empty(8 * PIXELS, packed.dtype)
    for tile in range(starts.shape[0] - 1):
        top, left = tile // columns * SIDE, tile % columns * SIDE
        _open_tile(buffer, top, left)
        for at in range(starts[tile], starts[tile + 1]):
            if _add_splat(buffer, packed[splats[at]], limits) == 0:
                break
        for row in range(min(SIDE, picture.shape[1] - top)):
            for column in range(min(SIDE, picture.shape[2] - left)):
                for channel in range(5):
                    picture[channel, top + row, left + column] = buffer[(3 + channel) * PIXELS + row * SIDE + column]


@no_type_check
@_jit
def _open_tile(buffer, top, left):
    for p in range(PIXELS):
        buffer[p] = left + p % SIDE
        buffer[PIXELS + p] = top + p // SIDE
        buffer[2 * PIXELS + p] = 1
    buffer[3 * PIXELS :] = 0


@no_type_check
@_jit
def _add_splat(buffer, s, limits):
    """Composite one splat on the buffer of `forward`; what is returned is 0 once no pixel lets anything through."""
    least, cap, stop = limits[0], limits[1], limits[2]
    one, zero, half = s.dtype.type(1), s.dtype.type(0), s.dtype.type(0.5)
    u, v, xx, xy, yy, opacity = s[0], s[1], -half * s[2], -s[3], -half * s[4], s[5]
    red, green, blue, z = s[6], s[7], s[8], s[9]
    through = zero
    for p in range(PIXELS):
        dx, dy = buffer[p] - u, buffer[PIXELS + p] - v
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
        through += after
        buffer[3 * PIXELS + p] += weight * red
        buffer[4 * PIXELS + p] += weight * green
        buffer[5 * PIXELS + p] += weight * blue
        buffer[6 * PIXELS + p] += weight * z
        buffer[7 * PIXELS + p] += weight
    return through


@no_type_check
@_jit
def backward(packed, splats, starts, columns, limits, picture, gradient, found):
    """Add the gradients by the packed columns to `found`; limits[3]: 1 where they pass the cap as if it were not there."""
    # x, y, transmittance, worth of what is behind, gradients of red, green, blue, z, alpha
    buffer = np.empty(9 * PIXELS, packed.dtype)
    sums = np.empty(10, packed.dtype)
    for tile in range(starts.shape[0] - 1):
        if starts[tile] == starts[tile + 1]:
            continue
        _open_tile_backward(buffer, tile // columns * SIDE, tile % columns * SIDE, picture, gradient)
        for at in range(starts[tile], starts[tile + 1]):
            splat = splats[at]
            through = _differentiate_splat(buffer, packed[splat], limits, sums)
            _collect(packed[splat], sums, found[splat])
            if through == 0:
                break


@no_type_check
@_jit
def _open_tile_backward(buffer, top, left, picture, gradient):
    _open_tile(buffer, top, left)
    # Pixels that stand out over the picture let nothing through.
    buffer[2 * PIXELS :] = 0
    for row in range(min(SIDE, picture.shape[1] - top)):
        for column in range(min(SIDE, picture.shape[2] - left)):
            p = row * SIDE + column
            buffer[2 * PIXELS + p] = 1
            for channel in range(5):
                slope = gradient[channel, top + row, left + column]
                buffer[(4 + channel) * PIXELS + p] = slope
                buffer[3 * PIXELS + p] += slope * picture[channel, top + row, left + column]


@no_type_check
@_jit
def _differentiate_splat(buffer, s, limits, sums):
    """Sums over the pixels of a tile: moments (1, x, y, xx, xy, yy) of the slope by the logarithm of the opacity, features."""
    least, cap, stop, past_cap = limits[0], limits[1], limits[2], limits[3]
    one, zero, half = s.dtype.type(1), s.dtype.type(0), s.dtype.type(0.5)
    u, v, xx, xy, yy, opacity = s[0], s[1], -half * s[2], -s[3], -half * s[4], s[5]
    red, green, blue, z = s[6], s[7], s[8], s[9]
    through, m, m_x, m_y, m_xx, m_xy, m_yy = zero, zero, zero, zero, zero, zero, zero
    by_red, by_green, by_blue, by_z = zero, zero, zero, zero
    for p in range(PIXELS):
        dx, dy = buffer[p] - u, buffer[PIXELS + p] - v
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
        through += after
        to_red, to_green, to_blue = buffer[4 * PIXELS + p], buffer[5 * PIXELS + p], buffer[6 * PIXELS + p]
        to_z, to_alpha = buffer[7 * PIXELS + p], buffer[8 * PIXELS + p]
        worth = red * to_red + green * to_green + blue * to_blue + z * to_z + to_alpha
        behind = buffer[3 * PIXELS + p] - weight * worth
        buffer[3 * PIXELS + p] = behind
        slope = raw * (before * worth - behind / left_over) if kept else zero
        slope = slope * past_cap if raw > cap else slope
        by_red += weight * to_red
        by_green += weight * to_green
        by_blue += weight * to_blue
        by_z += weight * to_z
        m += slope
        m_x += slope * dx
        m_y += slope * dy
        m_xx += slope * dx * dx
        m_xy += slope * dx * dy
        m_yy += slope * dy * dy
    sums[0], sums[1], sums[2], sums[3], sums[4], sums[5] = m, m_x, m_y, m_xx, m_xy, m_yy
    sums[6], sums[7], sums[8], sums[9] = by_red, by_green, by_blue, by_z
    return through


@no_type_check
@_jit
def _collect(s, sums, found):
    """Add the gradients that the sums of `_differentiate_splat` make."""
    half = s.dtype.type(0.5)
    found[0] += s[2] * sums[1] + s[3] * sums[2]
    found[1] += s[3] * sums[1] + s[4] * sums[2]
    found[2] -= half * sums[3]
    found[3] -= sums[4]
    found[4] -= half * sums[5]
    found[5] += sums[0]
    for channel in range(4):
        found[6 + channel] += sums[6 + channel]
