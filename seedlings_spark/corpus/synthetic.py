"""Draw a small corpus of species-like plants, from a seed.

For runs and tests that must work without anybody's photographs. Each picture shows one seedling from above:
leaves around a stem, their shadows, pebbly soil. Species differ in the outline of their leaves, their
number, their colour and the soil. Every number of leaves, colour and soil is shared by several species, and
eight of the twelve share both colour and soil with another, so that colours alone do not tell them apart:
0.83 of the pictures are recognised by their colours, 0.97 by a small convolutional network after 40 epochs
on 30 pictures a species. Position, rotation, size, light and noise vary within a species; every picture has
a random generator of its own.

The same arguments draw the same bits on every machine: only +, -, *, / and square roots are used, which
IEEE 754 rounds the same way everywhere, and never a sine or an exponential, which NumPy computes with
whatever the processor offers.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seedlings_spark.images import Pixels, encode_png

Array = npt.NDArray[np.float64]
Colour = tuple[float, float, float]  # red, green, blue, 0 to 255


@dataclass(frozen=True)
class _Soil:
    colour: Colour
    stones: int  # along each side of the picture
    contrast: float  # between one stone and the next, as a part of the colour


@dataclass(frozen=True)
class _Species:
    """One species; lengths are parts of the picture's side."""

    name: str
    outline: Callable[[Array], Array]  # half the width of a leaf along its length, both 0 to 1
    num_leaves: int
    length: float
    width: float
    stalk: float  # bare stem between the middle and the leaf
    colour: Colour
    soil: _Soil
    notch: float = 0.0  # depth of the cut in a leaf's tip, as a part of its length


def _wave(x: Array) -> Array:
    """Rise from 0 to 1 and fall back once for each whole number of x, smoothly."""
    rising = 1.0 - np.abs(2.0 * (x - np.floor(x)) - 1.0)
    height: Array = rising * rising * (3.0 - 2.0 * rising)
    return height


def _oval(u: Array) -> Array:
    half_width: Array = np.sqrt(4.0 * u * (1.0 - u))
    return half_width


def _ribbon(u: Array) -> Array:
    half_width: Array = np.sqrt(1.0 - u) * np.minimum(1.0, 0.4 + 3.0 * u)
    return half_width


def _lance(u: Array) -> Array:
    half_width: Array = 4.0 * u * (1.0 - u)
    return half_width


def _spade(u: Array) -> Array:
    half_width: Array = np.sqrt(6.75 * u * (1.0 - u) * (1.0 - u))
    return half_width


def _club(u: Array) -> Array:
    half_width: Array = np.sqrt(6.75 * u * u * (1.0 - u))
    return half_width


def _toothed(u: Array) -> Array:
    half_width: Array = _oval(u) * (0.72 + 0.28 * _wave(6.0 * u))
    return half_width


def _lobed(u: Array) -> Array:
    half_width: Array = _oval(u) * (0.3 + 0.7 * _wave(3.0 * u))
    return half_width


def _feather(u: Array) -> Array:
    half_width: Array = _oval(u) * (0.1 + 0.9 * _wave(5.0 * u))
    return half_width


_GRAVEL = _Soil((128.0, 104.0, 80.0), stones=13, contrast=0.5)
_PEAT = _Soil((70.0, 56.0, 48.0), stones=26, contrast=0.6)
_CLAY = _Soil((148.0, 92.0, 66.0), stones=17, contrast=0.25)
_SAND = _Soil((168.0, 152.0, 122.0), stones=32, contrast=0.3)

_FRESH = (104.0, 164.0, 52.0)
_DARK = (52.0, 104.0, 48.0)
_BLUISH = (92.0, 140.0, 112.0)
_YELLOWISH = (158.0, 170.0, 62.0)

_ALL = (
    _Species("Ambling Ribbonwort", _ribbon, 2, 0.40, 0.030, 0.00, _DARK, _SAND),
    _Species("Brook Needletuft", _ribbon, 6, 0.34, 0.016, 0.00, _YELLOWISH, _GRAVEL),
    _Species("Candle Twinleaf", _oval, 2, 0.29, 0.060, 0.06, _FRESH, _CLAY),
    _Species("Downy Crossleaf", _oval, 4, 0.24, 0.080, 0.05, _FRESH, _PEAT),
    _Species("Evening Coinplant", _oval, 2, 0.23, 0.125, 0.08, _BLUISH, _GRAVEL),
    _Species("Fiddler Moonpetal", _oval, 3, 0.21, 0.115, 0.09, _DARK, _PEAT),
    _Species("Glade Heartpair", _club, 2, 0.25, 0.145, 0.05, _DARK, _CLAY, notch=0.4),
    _Species("Hollow Sawblade", _toothed, 4, 0.30, 0.100, 0.03, _BLUISH, _GRAVEL),
    _Species("Islet Starlance", _lance, 6, 0.31, 0.050, 0.02, _YELLOWISH, _PEAT),
    _Species("Jester Featherlet", _feather, 3, 0.35, 0.110, 0.01, _YELLOWISH, _PEAT),
    _Species("Kestrel Spadefoot", _spade, 3, 0.28, 0.100, 0.06, _BLUISH, _CLAY),
    _Species("Lantern Lobewort", _lobed, 4, 0.32, 0.120, 0.03, _YELLOWISH, _SAND),
)
SPECIES = tuple(species.name for species in _ALL)


def draw(species: int, index: int, *, seed: int, size: int = 96) -> Pixels:
    """Draw one seedling: a pure function of its arguments, to the bit.

    Args:
        species: Position in `SPECIES`.
        index: Which plant of the species, from 0.
        seed: Seed of the whole corpus, from 0.
        size: Height and width in pixels, at least 8.

    Returns:
        uint8 array of shape (size, size, 3), values 0 to 255.

    Raises:
        ValueError: An argument is outside of its range.
    """
    if not 0 <= species < len(_ALL) or index < 0 or seed < 0 or size < 8:
        raise ValueError(
            f"species {species}, index {index}, seed {seed}, size {size}: expected a species of 0 to "
            f"{len(_ALL) - 1}, an index and a seed from 0 and a size from 8"
        )
    plant = _ALL[species]
    generator = np.random.default_rng([seed, species, index])
    y, x = np.divmod(np.arange(size * size).reshape(size, size), size)
    x, y = (x + 0.5) / size, (y + 0.5) / size

    picture = _draw_soil(generator, plant.soil, x, y)
    stem_x, stem_y = (0.5 + _between(generator, -0.07, 0.07) for _ in range(2))
    scale = _between(generator, 0.8, 1.1)
    turn = _between(generator, 0.0, 1.0)
    tint = [_between(generator, 0.93, 1.07) for _ in range(3)]
    for leaf in range(plant.num_leaves):
        heading = turn + leaf / plant.num_leaves + _between(generator, -0.03, 0.03)
        cosine, sine = _unit_vector(heading)
        along = (x - stem_x) * cosine + (y - stem_y) * sine
        across = (y - stem_y) * cosine - (x - stem_x) * sine
        across = across - _between(generator, -0.6, 0.6) * along * np.abs(along)
        own_scale = scale * _between(generator, 0.85, 1.1)
        shade = _between(generator, 0.85, 1.12)
        _draw_leaf(picture, plant, along / own_scale, across / own_scale, own_scale * size, tint, shade)

    light = _between(generator, 0.8, 1.15)
    slope_x, slope_y = (_between(generator, -0.25, 0.25) for _ in range(2))
    picture *= (light * (1.0 + slope_x * (x - 0.5) + slope_y * (y - 0.5)))[:, :, None]
    # The mean of three even numbers is nearly normal, here with a standard deviation of 5 levels.
    noise = generator.random((3, size, size, 3))
    picture += (noise[0] + noise[1] + noise[2] - 1.5) * 10.0
    pixels: Pixels = np.floor(np.clip(picture, 0.0, 255.0) + 0.5).astype(np.uint8)
    return pixels


def write_corpus(directory: Path, *, images_per_species: int = 40, size: int = 96, seed: int = 0) -> int:
    """Write a corpus as `directory`/<species>/<0000>.png, the same bytes for the same arguments.

    Files of the same names are replaced, each at once; other files are left alone.

    Args:
        directory: Made if missing.
        images_per_species: How many plants of each species.
        size: Height and width in pixels.
        seed: Another seed draws other plants.

    Returns:
        How many pictures were written.
    """
    for species, name in enumerate(SPECIES):
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(images_per_species):
            path = folder / f"{index:04d}.png"
            beside = folder / f".{path.name}.{os.getpid()}"
            beside.write_bytes(encode_png(draw(species, index, seed=seed, size=size)))
            beside.replace(path)
    return len(SPECIES) * images_per_species


def _between(generator: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(generator.random())


def _unit_vector(turns: float) -> tuple[float, float]:
    """Return cosine and sine of a part of a full turn, to nine digits and the same on every machine."""
    quarters = math.floor(turns * 4.0 + 0.5)
    angle = (turns * 4.0 - quarters) * (math.pi / 2.0)  # within an eighth of a turn around zero
    square = angle * angle
    cosine = sine = 1.0
    for order in (10, 8, 6, 4, 2):
        cosine = 1.0 - cosine * square / (order * (order - 1))
        sine = 1.0 - sine * square / (order * (order + 1))
    sine *= angle
    return ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[quarters % 4]


def _draw_soil(generator: np.random.Generator, soil: _Soil, x: Array, y: Array) -> Array:
    """Return (size, size, 3) of soil: each pixel belongs to the nearest of jittered stones.

    One stone lies in each cell of a grid (Worley, A cellular texture basis function, 1996).
    """
    stones = soil.stones
    offset = generator.random((2, stones + 2, stones + 2))
    tone = 1.0 + soil.contrast * (generator.random((stones + 2, stones + 2, 1)) - 0.5)
    tone = tone + 0.2 * soil.contrast * (generator.random((stones + 2, stones + 2, 3)) - 0.5)
    column, row = np.floor(x * stones).astype(np.int64), np.floor(y * stones).astype(np.int64)

    nearest = np.full(x.shape, 9.0)
    second = np.full(x.shape, 9.0)
    owner = np.zeros(x.shape, np.int64)
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            cell = (row + down) * (stones + 2) + column + right
            distance_x = column + right - 1.0 + offset[0].ravel()[cell] - x * stones
            distance_y = row + down - 1.0 + offset[1].ravel()[cell] - y * stones
            distance = distance_x * distance_x + distance_y * distance_y
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            nearest = np.where(closer, distance, nearest)
            owner = np.where(closer, cell, owner)
    gap = np.minimum(1.0, 3.0 * (np.sqrt(second) - np.sqrt(nearest)))  # 0 between two stones
    lit = (0.7 + 0.3 * gap)[:, :, None]
    warmth = _between(generator, 0.88, 1.12)
    ground: Array = tone.reshape(-1, 3)[owner] * lit * (np.array(soil.colour) * warmth)
    return ground


def _draw_leaf(
    picture: Array,
    plant: _Species,
    along: Array,
    across: Array,
    scale: float,
    tint: list[float],
    shade: float,
) -> None:
    """Draw a leaf, its stalk and their shadow into a picture.

    Args:
        picture: (size, size, 3), changed in place.
        plant: What to draw.
        along: (size, size), how far each pixel is from the stem in the leaf's direction.
        across: (size, size), how far it is beside the leaf's middle.
        scale: Pixels for one unit of `along` and `across`.
        tint: Factor of each colour, the plant's own.
        shade: Factor of all colours, the leaf's own.
    """
    u = (along - plant.stalk) / plant.length
    half_width = plant.width * plant.outline(np.clip(u, 0.0, 1.0))
    beside = np.abs(across)
    ends = np.minimum(u, 1.0 - u) * plant.length
    inside = np.minimum(half_width - beside, ends)
    if plant.notch:
        inside = np.minimum(inside, beside - 0.5 * plant.width * (u - 1.0 + plant.notch) / plant.notch)
    stalk = np.minimum(0.008 - beside, np.minimum(along, plant.stalk + 0.02 - along))
    coverage = np.clip(np.maximum(inside, stalk) * scale + 0.5, 0.0, 1.0)  # antialiased over one pixel

    shift = max(1, len(picture) // 40)
    shadow = np.zeros_like(coverage)
    shadow[shift:, shift:] = coverage[:-shift, :-shift]
    picture *= (1.0 - 0.4 * shadow)[:, :, None]

    rib = np.clip(1.0 - beside / (0.12 * plant.width), 0.0, 1.0)
    tone = shade * (0.94 + 0.22 * rib + 0.12 * across / plant.width)
    colour = tone[:, :, None] * (np.array(plant.colour) * np.array(tint))
    picture += (colour - picture) * coverage[:, :, None]
