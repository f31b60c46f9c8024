"""What pictures meet outside: noise, blur, bad light and so on, each in five strengths.

The idea is that of Hendrycks and Dietterich (2019, "Benchmarking neural network robustness to common corruptions and
perturbations"); the levels are ours, in shares of the picture, so that they mean the same at every size. What is drawn
(grains, the way that a picture is turned, the place of a square) depends on the picture's content and the kind only:
it is the same wherever a picture is looked at, and a stronger corruption is the weaker one, grown.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from seedlings_spark import reproducibility

Pixels = npt.NDArray[np.uint8]
_Values = npt.NDArray[Any]  # uint8, or floats that have still to be rounded
STRENGTHS = 5
_FULL = 255.0


@dataclass(frozen=True)
class Kind:
    """One kind of corruption.

    Attributes:
        name: In words.
        unit: What the levels are.
        levels: A level for each strength, the weakest first.
    """

    name: str
    unit: str
    levels: tuple[float, ...]


def _noise(pixels: Pixels, level: float, draw: np.random.Generator) -> _Values:
    return pixels + level * draw.standard_normal(pixels.shape)


def _blur(pixels: Pixels, level: float, _: np.random.Generator) -> _Values:
    radius = level / 100 * min(pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(pixels: Pixels, level: float, _: np.random.Generator) -> _Values:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=int(level), subsampling="4:2:0")
    with Image.open(content) as picture:
        return np.asarray(picture)


def _brightness(pixels: Pixels, level: float, draw: np.random.Generator) -> _Values:
    factor: float = 2.0 ** (level * _sign(draw))
    return pixels * factor


def _contrast(pixels: Pixels, level: float, _: np.random.Generator) -> _Values:
    mean = float(pixels.mean())
    return mean + (pixels - mean) * (level / 100)


def _rotation(pixels: Pixels, level: float, draw: np.random.Generator) -> _Values:
    # Over the picture's own mirror image: black corners would be a corruption of another kind.
    height, width = pixels.shape[:2]
    margin = math.ceil((math.hypot(height, width) - min(height, width)) / 2) + 1
    wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    turned = Image.fromarray(wide).rotate(level * _sign(draw), Image.Resampling.BILINEAR)
    return np.asarray(turned)[margin : margin + height, margin : margin + width]


def _occlusion(pixels: Pixels, level: float, draw: np.random.Generator) -> _Values:
    share = math.sqrt(level / 100)
    sides = [max(1, round(share * length)) for length in pixels.shape[:2]]
    top, left = (
        round(float(place) * (length - side))
        for place, length, side in zip(draw.random(2), pixels.shape[:2], sides, strict=True)
    )
    covered = pixels.copy()
    covered[top : top + sides[0], left : left + sides[1]] = 128
    return covered


def _resolution(pixels: Pixels, level: float, _: np.random.Generator) -> _Values:
    height, width = pixels.shape[:2]
    small = max(1, round(width / level)), max(1, round(height / level))
    shrunk = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    return np.asarray(shrunk.resize((width, height), Image.Resampling.BILINEAR))


def _colour(pixels: Pixels, level: float, draw: np.random.Generator) -> _Values:
    # A direction among those that leave the mean of the three channels as it is.
    angle = 2 * math.pi * float(draw.random())
    return pixels + level * np.cos(angle + 2 * math.pi * np.arange(3) / 3)


def _sign(draw: np.random.Generator) -> float:
    return 1.0 if float(draw.random()) < 0.5 else -1.0


_Corruption = Callable[[Pixels, float, np.random.Generator], _Values]
_CORRUPTIONS: dict[Kind, _Corruption] = {
    Kind("noise", "standard deviation of 255", (4, 8, 16, 32, 64)): _noise,
    Kind("blur", "% of the side, standard deviation", (0.5, 1, 2, 4, 8)): _blur,
    Kind("jpeg", "quality", (80, 50, 25, 10, 5)): _jpeg,
    Kind("brightness", "stops, up or down", (0.25, 0.5, 1, 1.5, 2)): _brightness,
    Kind("contrast", "% left", (80, 60, 40, 20, 10)): _contrast,
    Kind("rotation", "degrees, either way", (5, 10, 20, 30, 45)): _rotation,
    Kind("occlusion", "% of the picture", (2, 5, 10, 20, 40)): _occlusion,
    Kind("low resolution", "times fewer pixels a side", (1.5, 2, 3, 4, 8)): _resolution,
    Kind("colour shift", "of 255, in any direction", (8, 16, 32, 48, 64)): _colour,
}
KINDS: tuple[Kind, ...] = tuple(_CORRUPTIONS)


def corrupted(pixels: Pixels, kind: Kind, strength: int, content_hash: str) -> Pixels:
    """A corrupted picture.

    Args:
        pixels: Shape (height, width, 3), RGB; it stays as it is.
        kind: One of `KINDS`.
        strength: From 1 to `STRENGTHS`.
        content_hash: Of the picture's file, from which what is random is drawn.

    Returns:
        Of the same shape.
    """
    draw = np.random.default_rng(reproducibility.seed_for(0, f"corruption {kind.name} {content_hash}"))
    values = _CORRUPTIONS[kind](pixels, kind.levels[strength - 1], draw)
    if values.dtype != np.uint8:
        values = np.clip(np.rint(values), 0, _FULL).astype(np.uint8)
    return np.ascontiguousarray(values)
