"""From light to files: what a colour camera and a depth camera make of a rendering."""

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from pydantic import BaseModel, ConfigDict, Field

# Kinect v1: projector and camera 75 mm apart; what only one of the two sees has no depth.
_PROJECTOR_BASELINE = 0.075


class Sensor(BaseModel):
    """Imperfections of the colour camera and of the depth camera."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise: float = Field(0.01, ge=0, le=0.2, description="deviation of a pixel at mid grey, as a share of full scale")
    exposure: float = Field(0.04, ge=0, le=0.5, description="deviation of a view's brightness, as a share")
    vignetting: float = Field(0.12, ge=0, le=0.8, description="loss of light in the image's corners, as a share")
    blur: float = Field(0.55, ge=0, le=5, description="deviation of the lens's blur, in pixels")
    variety: float = Field(0.45, ge=0, le=2, description="deviation of the logarithm of noise and blur between scenes")
    depth_noise: float = Field(
        0.0, ge=0, le=0.02, description="deviation of depth at z metres: this times z squared, metres"
    )
    holes: bool = Field(False, description="no depth at grazing angles, in the projector's shadow and beyond max_depth")
    min_depth: float = Field(0.4, ge=0, description="nearest depth that is measured, metres")
    max_depth: float = Field(8.0, gt=0, description="farthest depth that is measured, metres")


def of_scene(sensor: Sensor, rng: np.random.Generator) -> Sensor:
    """The sensor that one scene was taken with: its noise and blur drawn around the usual ones."""
    noise, blur = np.exp(rng.normal(0, sensor.variety, 2))
    return sensor.model_copy(update={"noise": sensor.noise * float(noise), "blur": sensor.blur * float(blur)})


def photograph(
    light: Float32[np.ndarray, "h w 3"], sensor: Sensor, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """An 8-bit RGB picture of linear light: exposure, vignetting, lens blur, the sRGB curve (as a power of 1/2.2), noise."""
    height, width = light.shape[:2]
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)[None]
    gain = np.float32(np.exp(rng.normal(0, sensor.exposure))) * (
        1 - np.float32(sensor.vignetting) * (x * x + y * y) / 2
    )
    image: np.ndarray = light * gain[..., None]
    if sensor.blur > 0:
        image = cv2.GaussianBlur(image, (0, 0), sensor.blur)
    image = np.clip(np.asarray(image, np.float32), 0, 1) ** np.float32(1 / 2.2)
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    # Shot noise after the tone curve is nearly even; dark parts get the read noise on top.
    image += np.float32(sensor.noise) * grain * (1.3 - 0.6 * image)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def measure(
    depth: Float32[np.ndarray, "h w"], focal: float, sensor: Sensor, rng: np.random.Generator
) -> Float32[np.ndarray, "h w"]:
    """What a depth camera of focal length `focal` (pixels) reports of exact depth in metres: noise, range and holes (0)."""
    noise = cv2.GaussianBlur(rng.standard_normal(depth.shape, dtype=np.float32), (0, 0), 0.7)
    noise *= np.float32(sensor.depth_noise / max(float(noise.std()), 1e-6)) * depth * depth
    measured = np.where(depth > 0, depth + noise, 0)
    keep = (depth >= sensor.min_depth) & (depth <= sensor.max_depth)
    if sensor.holes:
        keep &= ~(_in_projector_shadow(depth, focal) | _grazing(depth, focal))
    return np.where(keep, measured, 0).astype(np.float32)


def _in_projector_shadow(depth: Float32[np.ndarray, "h w"], focal: float) -> Bool[np.ndarray, "h w"]:
    # Along a row, the projector sees a point unless one before it lies as far or farther on the projector's own row.
    column = np.arange(depth.shape[1], dtype=np.float32) + focal * _PROJECTOR_BASELINE / np.maximum(depth, 0.2)
    farthest = np.maximum.accumulate(column, axis=1)
    shadow = np.zeros(depth.shape, bool)
    shadow[:, 1:] = column[:, 1:] <= farthest[:, :-1]
    return shadow


def _grazing(depth: Float32[np.ndarray, "h w"], focal: float) -> Bool[np.ndarray, "h w"]:
    # A slope of more than 8 pixel widths of depth a pixel is a surface seen at less than about 7 degrees, or an edge.
    limit = 8 * np.maximum(depth, 0.2) / focal
    steep = np.zeros(depth.shape, bool)
    steep[:, 1:] |= np.abs(np.diff(depth, axis=1)) > limit[:, 1:]
    steep[1:] |= np.abs(np.diff(depth, axis=0)) > limit[1:]
    return steep
