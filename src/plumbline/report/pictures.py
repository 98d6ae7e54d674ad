"""Pictures in the page: depth and error maps on a stated scale, as data URIs."""

import base64
import io
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageSequence

from plumbline.depth_sheet import COLOUR_MAPS, coloured
from plumbline.errors import DataError

_TILE_WIDTH = 320
_SHEET_WIDTH = 960


def encode_webp(rgb: UInt8[np.ndarray, "h w 3"], *, quality: int = 80) -> str:
    """The image as a WebP data URI; the same pixels give the same text."""
    done, data = cv2.imencode(".webp", rgb[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not done:
        raise DataError(f"report: an image of shape {rgb.shape} could not be encoded as WebP.")
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode()


def picture(rgb: UInt8[np.ndarray, "h w 3"]) -> str:
    """A photograph at the width of a tile."""
    return encode_webp(_fit(rgb, _TILE_WIDTH, smooth=True))


def colour_map(
    values: Float32[np.ndarray, "h w"], shown: Bool[np.ndarray, "h w"], limits: tuple[float, float], kind: str
) -> str:
    """A map of `values` as `coloured` paints it, at the width of a tile, as a data URI."""
    return encode_webp(_fit(coloured(values, shown, limits, kind), _TILE_WIDTH, smooth=False), quality=88)


def gradient(kind: str, *, stops: int = 12) -> str:
    """The colour bar of `kind` as a CSS gradient, low on the left."""
    levels = np.linspace(0, 255, stops).round().astype(np.uint8)[None]
    colours = cv2.applyColorMap(levels, COLOUR_MAPS[kind])[0, :, ::-1]
    return "linear-gradient(90deg," + ",".join("#" + bytes(colour.tolist()).hex() for colour in colours) + ")"


def thumbnail(path: Path) -> str:
    """A PNG file at the width of a contact sheet."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: cannot be read as an image. Check the data again: `dvc repro check_data`.")
    return encode_webp(_fit(np.ascontiguousarray(image[..., ::-1]), _SHEET_WIDTH, smooth=True), quality=70)


def movie(path: Path, *, quality: int = 60) -> str:
    """A GIF as an animated WebP data URI, of its own pace and for ever: a third of the bytes, and no dither."""
    try:
        with Image.open(path) as film:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]
            pace = int(film.info.get("duration", 100))
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a GIF ({error}). Predict again: `dvc repro predict`.") from error
    data = io.BytesIO()
    frames[0].save(
        data, "WEBP", save_all=True, append_images=frames[1:], duration=pace, loop=0, quality=quality, method=4
    )
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def _fit(rgb: UInt8[np.ndarray, "h w 3"], width: int, *, smooth: bool) -> UInt8[np.ndarray, "h2 w2 3"]:
    height = max(1, round(rgb.shape[0] * width / rgb.shape[1]))
    if rgb.shape[1] > width:
        return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    # maps keep their own pixels (the page enlarges them), or a reader would see values that no method gave
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_CUBIC) if smooth else rgb
