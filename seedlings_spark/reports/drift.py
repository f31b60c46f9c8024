"""How far the images and predictions of a scoring run are from those of the training corpus.

A run is summarised by a `Profile`: how many images were predicted to be of each species, and histograms of
the model's confidence and of four statistics of the images; of a model that gives a number, a histogram of
that takes the place of the first two. The bins of a histogram never change, so that
the profiles of tasks, days and runs can be added; about ten cells of equal reference mass are made of them
only when two profiles are compared.

The distance is the population stability index, PSI = sum over cells of (p - q) ln(p / q), where p and q are
the shares of reference and current (Siddiqi 2006, "Credit risk scorecards"; there also the limits of 0.1 and
0.25). Two samples of n and m images from one distribution do not have a PSI of 0 but one that is
asymptotically (1/n + 1/m) times chi-square with cells - 1 degrees of freedom (Yurdakul 2018, "Statistical
properties of population stability index", Western Michigan University). What is below the 99.9 % quantile of
that is called noise, and never a drift: the PSI of a hundred images is often above 0.1 for no reason.

What is not promised: that drift costs accuracy, or that accuracy is kept without it. The noise is that of
images drawn one by one; a run over a single tray or day is less varied than that, and drifts sooner. A corpus
with as many images of each species as could be had differs from any field in its species.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seedlings_spark import display, schema
from seedlings_spark.errors import SeedlingsError

# brightness: mean luma, 0 (black) to 1 (white)
# contrast: standard deviation of the luma, 0 to 0.5
# sharpness: log2(1 + mean squared Laplacian of the luma in grey levels), 0 to 20
# size: log2 of the file's length in bytes
STATISTICS = ("brightness", "contrast", "sharpness", "size")
CONFIDENCE = "confidence"
SPECIES = "species"
# value: of a model that gives numbers, how many standard deviations one is from the mean of the training images'
VALUE = "value"

# Fine enough that ten cells can be made where all files of a corpus are within a factor of two in length.
NUM_BINS = 256
# Lower end of the first bin and upper end of the last. The Laplacian is within -1020 and 1020 grey levels;
# files of less than 64 bytes or more than 64 MB fall into the end bins.
_RANGES = {
    "brightness": (0.0, 1.0),
    "contrast": (0.0, 0.5),
    "sharpness": (0.0, 20.0),
    "size": (6.0, 26.0),
    CONFIDENCE: (0.0, 1.0),
    VALUE: (-4.0, 4.0),
}

UNKNOWN = "unknown"
STABLE = "stable"
DRIFTING = "drifting"
SHIFTED = "shifted"
# From the least to the most worrying; `verdict` depends on the order.
VERDICTS = (UNKNOWN, STABLE, DRIFTING, SHIFTED)
# Siddiqi's limits: below 0.1 nothing to do, from 0.25 on another population.
_DRIFTING_FROM = 0.1
_SHIFTED_FROM = 0.25

# Of the JSON and of the bins: whoever changes NUM_BINS or a range changes this.
FORMAT = 1

_NUM_CELLS = 10
# Chi-square approximates counts of which about five or more are expected (Cochran 1954, "Some methods for
# strengthening the common chi-square tests").
_MIN_EXPECTED = 5
# There may be hundreds of species with so few images, and logarithms have longer tails than chi-square: with
# five, samples of one distribution of 300 species exceeded the noise in 10 of 1000 cases, with ten in 3.
_MIN_EXPECTED_OF_SPECIES = 10
# A logarithm needs something: half an image, as in Haldane's correction of odds ratios.
_EMPTY_CELL = 0.5
_Z = 3.0902  # 99.9 % quantile of the standard normal distribution

# ITU-R BT.601 in parts of 256: luma in 1/256 of a grey level fits 16 bits.
_RED, _GREEN, _BLUE = 77, 150, 29
# Luma is kept in 1/32 of a grey level: 4 times the largest, the largest Laplacian, is 32640 and fits int16.
_DROPPED_BITS = 3
_WHITE = 255 * 32
# Pixels at once, so that a block's 64-bit copy stays in the processor's cache.
_PIXELS_AT_ONCE = 1 << 15

# Columns of the largest difference, and of the shares at its end, which stay.
_TABLE_TEXT, _SHARES = 42, 24

_Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """What is kept of the images and predictions of a run. `Profile()` is that of no images.

    Profiles add up, in any order and grouping. Species and histograms may have different totals, as when
    statistics are taken of a sample only; what is missing counts as empty.

    Attributes:
        species: Predicted species -> number of images.
        histograms: "confidence" or "value", or one of `STATISTICS` -> number of images in each of `NUM_BINS` bins, as
            `np.bincount(bins(name, values), minlength=NUM_BINS)` counts them.

    Raises:
        ValueError: A count is negative, or a histogram is unknown or has another number of bins.
    """

    species: Mapping[str, int] = field(default_factory=dict)
    histograms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Python's integers: exact at any size, and JSON knows them.
        species = {name: operator.index(count) for name, count in self.species.items()}
        histograms = {
            name: tuple(operator.index(count) for count in counts) for name, counts in self.histograms.items()
        }
        for name, counts in histograms.items():
            if name not in _RANGES:
                raise ValueError(f"a histogram of {name!r}, expected one of {', '.join(_RANGES)}")
            if len(counts) != NUM_BINS:
                raise ValueError(f"a histogram of {name} with {len(counts)} bins, expected {NUM_BINS}")
        for name, counts in (*histograms.items(), (SPECIES, tuple(species.values()))):
            if min(counts, default=0) < 0:
                raise ValueError(f"a count of {min(counts)} in {name}, expected 0 or more")
        object.__setattr__(self, "species", species)
        object.__setattr__(self, "histograms", histograms)

    @property
    def num_predicted(self) -> int:
        """Of how many images a species or a number was predicted, at most."""
        return max(sum(self.species.values()), sum(self.histograms.get(VALUE, ())))

    def __add__(self, other: "Profile") -> "Profile":
        if not isinstance(other, Profile):
            return NotImplemented
        species = dict(self.species)
        for name, count in other.species.items():
            species[name] = species.get(name, 0) + count
        histograms = dict(self.histograms)
        for name, counts in other.histograms.items():
            own = histograms.get(name, (0,) * NUM_BINS)
            histograms[name] = tuple(map(operator.add, own, counts))
        return Profile(species, histograms)

    def to_json(self) -> dict[str, object]:
        """The same as dicts, lists, strings and integers; of a histogram the bins that are not empty."""
        return {
            "format": FORMAT,
            "species": {name: self.species[name] for name in sorted(self.species)},
            "histograms": {
                name: [[place, count] for place, count in enumerate(self.histograms[name]) if count]
                for name in sorted(self.histograms)
            },
        }

    @classmethod
    def from_json(cls, content: object) -> "Profile":
        """Read what `to_json` gave.

        Raises:
            SeedlingsError: It is of a format that this version does not know, or damaged.
        """
        found = content.get("format") if isinstance(content, dict) else None
        if not isinstance(content, dict) or type(found) is not int or found != FORMAT:
            raise SeedlingsError(
                f"a profile of format {found!r}",
                f"format {FORMAT}",
                "Read it with the version of this package that wrote it, or make it anew with this one",
            )
        try:
            species = {_text(name): _count(count) for name, count in content["species"].items()}
            histograms = {}
            for name, filled in content["histograms"].items():
                counts = [0] * NUM_BINS
                for place, count in filled:
                    if not 0 <= _count(place) < NUM_BINS or counts[place]:
                        raise ValueError(f"bin {place} of {name} out of range or twice")
                    counts[place] = _count(count)
                histograms[name] = tuple(counts)
            return cls(species, histograms)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SeedlingsError(
                f"a damaged profile: {type(error).__name__}: {error}",
                '"species" with a count each and "histograms" with pairs of bin and count',
                "Restore the file, or make the profile anew",
            ) from error


@dataclass(frozen=True)
class Drift:
    """How far one distribution is from its reference. `compare` makes it.

    Attributes:
        name: "species", "confidence", "value", one of `STATISTICS`, or of a column of a corpus.
        psi: Population stability index, 0 or more; not a number if one side is empty.
        noise: What the PSI of two samples of these sizes from one distribution stays below in 999 of 1000
            cases; not a number if one side is empty.
        verdict: One of `VERDICTS`. "stable" whatever the PSI while that is not above the noise, "unknown" if
            one side is empty.
        largest: For species the one that contributes most, with its shares in reference and current, as in
            "Maize 12.0% -> 30.5%"; otherwise "higher" or "lower", what the current values are on average.
            Empty where there is no difference. Species are named as they are, printable or not.
    """

    name: str
    psi: float
    noise: float
    verdict: str
    largest: str

    def to_dict(self) -> dict[str, object]:
        """The same for JSON: null where a number is undefined."""
        is_known = self.verdict != UNKNOWN
        return {
            "name": self.name,
            "psi": self.psi if is_known else None,
            "noise": self.noise if is_known else None,
            "verdict": self.verdict,
            "largest": self.largest,
        }


def pixels_of(batch: pa.RecordBatch) -> npt.NDArray[np.uint8]:
    """The pixels of at least one picture of a corpus, all of one size: shape (pictures, height, width, 3)."""
    height, width = (batch.column(name)[0].as_py() for name in (schema.HEIGHT, schema.WIDTH))
    content = b"".join(batch.column(schema.IMAGE).to_pylist())
    return np.frombuffer(content, np.uint8).reshape(-1, height, width, 3)


def statistics(
    pixels: npt.NDArray[np.uint8], lengths: npt.NDArray[np.integer[Any]]
) -> dict[str, npt.NDArray[np.float64]]:
    """The `STATISTICS` of some images.

    Sharpness is the energy of the Laplacian (Subbarao, Choi and Nikzad 1993, "Focusing techniques"; LAP1 in
    Pertuz, Puig and Garcia 2013, "Analysis of focus measure operators for shape-from-focus"): the mean over
    the inner pixels of the square of 4 times the luma less that of the four neighbours. Noise counts as
    sharp, and blur is seen only as far as it is left at the size of these pixels.

    All sums are exact: an image's statistics do not depend on what other images it comes with. They do
    depend on the size to which it was decoded; compare only images decoded to the same size.

    Args:
        pixels: Shape (images, height, width, 3), RGB.
        lengths: Shape (images,), bytes of the files.

    Returns:
        Name -> shape (images,). Sharpness is 0 without inner pixels, size without bytes.

    Raises:
        ValueError: The arrays are not of that shape and kind.
    """
    pixels, lengths = np.asarray(pixels), np.asarray(lengths)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape[1:3]:
        raise ValueError(
            f"pixels of {pixels.dtype} {pixels.shape}, expected uint8 (images, height, width, 3)"
        )
    if lengths.shape != pixels.shape[:1]:
        raise ValueError(f"lengths of shape {lengths.shape}, expected {pixels.shape[:1]}, one for each image")
    num_images, height, width, _ = pixels.shape
    sums, squares, energies = np.zeros((3, num_images))
    step = max(1, _PIXELS_AT_ONCE // (height * width))
    for start in range(0, num_images, step):
        block = slice(start, start + step)
        luma = _luma(pixels[block])
        values = luma.reshape(len(luma), -1).astype(np.float64)
        sums[block] = values.sum(axis=1)
        squares[block] = np.einsum("ij,ij->i", values, values)
        inner = _laplacian(luma)
        values = inner.reshape(len(luma), math.prod(inner.shape[1:])).astype(np.float64)
        energies[block] = np.einsum("ij,ij->i", values, values)
    means = sums / (height * width)
    variances = np.maximum(squares / (height * width) - means**2, 0.0)
    num_inner = max(1, max(0, height - 2) * max(0, width - 2))
    return {
        "brightness": means / _WHITE,
        "contrast": np.sqrt(variances) / _WHITE,
        "sharpness": np.log2(1.0 + energies / (num_inner * (_WHITE / 255) ** 2)),
        "size": np.log2(np.maximum(lengths, 1).astype(np.float64)),
    }


def _luma(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Luma in 1/32 of a grey level, 0 to 8160, rounded down."""
    luma = pixels[..., 0].astype(np.uint16) * np.uint16(_RED)
    # Channel by channel, converted before it is multiplied: mixed types would go through NumPy's buffers.
    channel = pixels[..., 1].astype(np.uint16)
    channel *= np.uint16(_GREEN)
    luma += channel
    channel = pixels[..., 2].astype(np.uint16)
    channel *= np.uint16(_BLUE)
    luma += channel
    luma >>= np.uint16(_DROPPED_BITS)
    return luma.view(np.int16)


def _laplacian(luma: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """4 times each inner pixel less its neighbours; no sum on the way leaves int16."""
    inner = luma[:, 1:-1, 1:-1] << np.int16(2)
    inner -= luma[:, :-2, 1:-1]
    inner -= luma[:, 2:, 1:-1]
    inner -= luma[:, 1:-1, :-2]
    inner -= luma[:, 1:-1, 2:]
    return inner


def bins(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The bin of each value, 0 to `NUM_BINS` - 1.

    A value on an edge belongs to the bin above it. What is below the range is in the first bin and what is
    above it in the last; what is not a number is in the first, so that no job stops for it.

    Args:
        name: "confidence", "value" or one of `STATISTICS`.
        values: Any shape.

    Raises:
        ValueError: There is no such name.
    """
    if name not in _RANGES:
        raise ValueError(f"bins of {name!r}, expected one of {', '.join(_RANGES)}")
    low, high = _RANGES[name]
    places = (np.asarray(values, dtype=np.float64) - low) * (NUM_BINS / (high - low))
    return np.clip(np.nan_to_num(places, nan=0.0), 0, NUM_BINS - 1).astype(np.int64)


def compare(reference: Profile, current: Profile) -> list[Drift]:
    """How far `current` is from `reference`, in each of their distributions.

    Species are a cell each; those of which the smaller sample would have fewer than ten images, by the mean
    of their two shares, are pooled into one. Histograms are cut where the reference's mass reaches each
    tenth; in samples so small that a cell would have fewer than five images there are fewer cells, but at
    least two. A bin that alone has the mass of two cells is a cell of its own, so that values beside it are
    seen even if the reference has no others. A cell that is empty on one side counts as half an image there;
    one that is empty on both sides is left out.

    Returns:
        Species, confidence, then `STATISTICS` in their order; always all of them. Where the reference is that of a
        model which gives numbers, "value" in place of the first two.
    """
    has_numbers = VALUE in reference.histograms
    drifts = [] if has_numbers else [of_counts(SPECIES, reference.species, current.species)]
    for name in (VALUE if has_numbers else CONFIDENCE, *STATISTICS):
        nothing = (0,) * NUM_BINS
        drifts.append(
            _histogram_drift(
                name,
                np.array(reference.histograms.get(name, nothing), dtype=np.float64),
                np.array(current.histograms.get(name, nothing), dtype=np.float64),
            )
        )
    return drifts


def worst(drifts: Iterable[Drift]) -> float:
    """The largest PSI of those above their noise; 0 if none is."""
    return max((drift.psi for drift in drifts if drift.psi > drift.noise), default=0.0)


def verdict(drifts: Iterable[Drift]) -> str:
    """The most worrying verdict of those that are known; "unknown" if none is."""
    return max((drift.verdict for drift in drifts), key=VERDICTS.index, default=UNKNOWN)


def table(drifts: Sequence[Drift]) -> str:
    """The drifts as plain text, a line each, without a newline at the end. "-" is what is undefined."""
    width = max(len(name) for name in (SPECIES, *_RANGES))
    lines = [f"{'':<{width}}     PSI   noise  {'verdict':<8}  largest difference"]
    lines += [
        f"{drift.name:<{width}}  {_number(drift.psi):>6}  {_number(drift.noise):>6}  {drift.verdict:<8}  "
        f"{display.abridged(display.shown(drift.largest), _TABLE_TEXT, _SHARES)}"
        for drift in drifts
    ]
    return "\n".join(line.rstrip() for line in lines)


def of_counts(name: str, reference: Mapping[str, int], current: Mapping[str, int]) -> Drift:
    """How far counts of values, such as species, are from their reference; `compare` says how."""
    names = sorted({each for counts in (reference, current) for each, count in counts.items() if count})
    both = np.array(
        [[counts.get(each, 0) for each in names] for counts in (reference, current)], dtype=np.float64
    )
    totals = both.sum(axis=1, keepdims=True)
    if not totals.all():
        return _unknown(name)
    is_rare = (both / totals).mean(axis=0) * totals.min() < _MIN_EXPECTED_OF_SPECIES
    labels = [each for each, rare in zip(names, is_rare, strict=True) if not rare]
    pooled = [each for each, rare in zip(names, is_rare, strict=True) if rare]
    cells = both[:, ~is_rare]
    if pooled:
        what = "species" if name == SPECIES else "values"
        labels.append(pooled[0] if len(pooled) == 1 else f"{len(pooled)} rare {what}")
        cells = np.column_stack([cells, both[:, is_rare].sum(axis=1)])
    terms = _psi_terms(cells)
    largest = ""
    if terms.any():
        place = int(terms.argmax())
        before, after = (cells / totals)[:, place]
        largest = f"{labels[place]} {before:.1%} -> {after:.1%}"
    return _drift(name, cells, terms, largest)


def _histogram_drift(name: str, reference: _Counts, current: _Counts) -> Drift:
    totals = (reference.sum(), current.sum())
    if not all(totals):
        return _unknown(name)
    num_cells = int(min(_NUM_CELLS, max(2, min(totals) // _MIN_EXPECTED)))
    reached = np.searchsorted(np.cumsum(reference) * num_cells, np.arange(1, num_cells) * totals[0])
    heavy = np.flatnonzero(reference * num_cells >= 2 * totals[0])
    starts = np.unique(np.concatenate([[0], reached + 1, heavy, heavy + 1]))
    starts = starts[starts < NUM_BINS]
    cells = np.add.reduceat(np.stack([reference, current]), starts, axis=1)
    cells = cells[:, cells.any(axis=0)]
    places = np.arange(NUM_BINS)
    # Of the means, times both totals: exact, so that equal ones are equal.
    difference = int(places @ current) * int(totals[0]) - int(places @ reference) * int(totals[1])
    largest = "higher" if difference > 0 else "lower" if difference < 0 else ""
    return _drift(name, cells, _psi_terms(cells), largest)


def _psi_terms(cells: _Counts) -> _Counts:
    """What each cell adds to the PSI, 0 or more.

    Args:
        cells: Shape (2, cells): images of reference and current; no cell is empty in both.
    """
    shares = np.where(cells > 0, cells, _EMPTY_CELL) / cells.sum(axis=1, keepdims=True)
    terms: _Counts = (shares[0] - shares[1]) * np.log(shares[0] / shares[1])
    return terms


def _drift(name: str, cells: _Counts, terms: _Counts, largest: str) -> Drift:
    psi = math.fsum(terms)
    noise = _chi_square_quantile(cells.shape[1] - 1) * float((1 / cells.sum(axis=1)).sum())
    if psi <= noise or psi < _DRIFTING_FROM:
        found = STABLE
    else:
        found = SHIFTED if psi >= _SHIFTED_FROM else DRIFTING
    return Drift(name, psi, noise, found, largest)


def _unknown(name: str) -> Drift:
    return Drift(name, math.nan, math.nan, UNKNOWN, "")


def _chi_square_quantile(degrees: int) -> float:
    """The 99.9 % quantile of chi-square after Wilson and Hilferty 1931, "The distribution of chi-square".

    3 % too high with one degree of freedom, 0.7 % with nine: never too low.
    """
    if degrees == 0:
        return 0.0
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + _Z * math.sqrt(part)) ** 3)


def _text(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name {name!r}")
    return name


def _count(count: object) -> int:
    # JSON's true is 1 to Python.
    if type(count) is not int or count < 0:
        raise ValueError(f"a count of {count!r}")
    return count


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
