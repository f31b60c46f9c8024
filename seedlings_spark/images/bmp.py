"""BMP pictures of palettes, by ourselves: Pillow reads some as black and white, and run lengths one by one.

Layouts as Microsoft documents BITMAPFILEHEADER, BITMAPCOREHEADER and BITMAPINFOHEADER, and its bitmap compression.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from seedlings_spark.errors import ImageError

Indices = npt.NDArray[np.uint8]

_RAW, _RLE8, _RLE4, _MASKS, _ALPHA_MASKS = 0, 1, 2, 3, 6
_CORE, _INFO, _OS2 = 12, 40, 64  # lengths of headers
_LENGTHS = frozenset({_CORE, *range(16, 41), 52, 56, _OS2, 108, 124})
_MOST_COLOURS = 65_536  # that a palette may say to have; more than its pixels can name are left out
_DEPTHS = (1, 2, 4, 8, 16, 24, 32)
# Ends of lines, jumps and runs of unequal pixels, of which each costs some microseconds. Real files have a few a row.
_MAX_ESCAPES = 500_000
# Share of the pixels that a file of run lengths has to hold. What it leaves out is meant to be seen through, where it
# was not lost; of a picture that is to be recognised there is more.
_LEAST_GIVEN = 0.5


@dataclass(frozen=True)
class Header:
    """What the headers of a BMP say.

    Args:
        size: (width, height).
        is_upside_down: The first row is the lowest, as is usual.
        depth: Bits a pixel.
        compression: As in BITMAPINFOHEADER.
        palette: RGB colours, uint8 of shape (number, 3).
        pixels_at: Where the pixels begin.
    """

    size: tuple[int, int]
    is_upside_down: bool
    depth: int
    compression: int
    palette: npt.NDArray[np.uint8]
    pixels_at: int


def read_header(content: bytes) -> Header:
    """Read the headers and the palette of a BMP.

    Raises:
        ImageError: They are cut, make no sense, or are of a kind that is not read.
    """
    try:
        return _header(content)
    except struct.error:
        raise ImageError("truncated", "the file ends within its header") from None


def _header(content: bytes) -> Header:
    pixels_at, length = struct.unpack_from("<II", content, 10)
    if length not in _LENGTHS:
        raise ImageError("corrupt", f"a BMP with a header of {length:,} bytes")
    if length == _CORE:
        width, height, _, depth = struct.unpack_from("<HHHH", content, 18)
        compression, num_colours = _RAW, 0
    else:
        # OS/2 lets a header end after any field; what is not there is 0.
        fields = (content[18 : 14 + min(length, _INFO)]).ljust(36, b"\0")
        if len(content) < 14 + min(length, _INFO):
            raise ImageError("truncated", "the file ends within its header")
        width, height, _, depth, compression, _, _, _, num_colours, _ = struct.unpack("<iiHHIIiiII", fields)
    if width < 1 or height == 0:
        raise ImageError("corrupt", f"a BMP of {height} x {width} pixels")
    if depth not in _DEPTHS:
        raise ImageError("unsupported_format", f"a BMP of {depth} bits a pixel")
    known = {_RAW: _DEPTHS, _RLE8: (8,), _RLE4: (4,), _MASKS: (16, 24, 32), _ALPHA_MASKS: (16, 24, 32)}
    is_os2 = length == _OS2 or _CORE < length < _INFO
    if depth not in known.get(compression, ()) or (is_os2 and compression > _RLE4):
        raise ImageError(
            "unsupported_format", f"a BMP of {depth} bits a pixel with compression {compression}"
        )
    palette = np.zeros((256, 3), np.uint8)
    if depth <= 8:
        if num_colours > _MOST_COLOURS:
            raise ImageError("corrupt", f"a BMP of {num_colours:,} colours")
        of_file = num_colours if 0 < num_colours <= 1 << depth else 1 << depth
        each = 3 if length == _CORE else 4
        start = 14 + length
        if pixels_at > start:  # some files have fewer colours than they say
            of_file = min(of_file, (pixels_at - start) // each)
        if len(content) < start + of_file * each:
            raise ImageError("truncated", "the file ends within its palette")
        colours = np.frombuffer(content, np.uint8, of_file * each, start).reshape(of_file, each)
        palette[:of_file] = colours[:, 2::-1]
        pixels_at = pixels_at or start + of_file * each
    return Header((width, abs(height)), height > 0, depth, compression, palette, pixels_at)


def indices(content: bytes, header: Header) -> Indices:
    """Decode the pixels of a BMP of up to 8 bits.

    Returns:
        uint8 array of shape (height, width), upright: numbers of colours in the palette.

    Raises:
        ImageError: The pixels end before the picture does.
    """
    width, height = header.size
    if header.compression in (_RLE8, _RLE4):
        found = _run_lengths(content, header)
    else:
        stride = (width * header.depth + 31) // 32 * 4
        row = (width * header.depth + 7) // 8
        missing = header.pixels_at + stride * (height - 1) + row - len(content)
        if missing > 0:
            raise ImageError("truncated", f"the file ends {missing:,} bytes before its pixels do")
        data = content[header.pixels_at : header.pixels_at + stride * height].ljust(stride * height, b"\0")
        found = _unpacked(np.frombuffer(data, np.uint8).reshape(height, stride)[:, :row], header.depth)[
            :, :width
        ]
    return np.ascontiguousarray(found[::-1] if header.is_upside_down else found)


def _unpacked(packed: Indices, depth: int) -> Indices:
    """The values of 1, 2, 4 or 8 bits that bytes hold, the highest first."""
    if depth == 8:
        return packed
    if depth == 1:
        return np.unpackbits(packed, axis=1)
    found = np.empty((packed.shape[0], packed.shape[1], 8 // depth), np.uint8)
    for place in range(8 // depth):
        found[:, :, place] = packed >> (8 - depth * (place + 1)) & (1 << depth) - 1
    return found.reshape(packed.shape[0], -1)


def _run_lengths(content: bytes, header: Header) -> Indices:
    """Pixels in the order of the file; those that a file skips are of the first colour, and less than half of all.

    Runs of equal pixels are taken a row at a time: what is looked at one by one are escapes, whose number is limited.
    """
    width, height = header.size
    found = np.zeros((height, width), np.uint8)
    of_four = header.compression == _RLE4
    data = np.frombuffer(content, np.uint8, offset=min(header.pixels_at, len(content)))
    pairs = data[: len(data) // 2 * 2].reshape(-1, 2)
    escapes = np.flatnonzero(pairs[:, 0] == 0)
    at, x, y, num_given = 0, 0, 0, 0
    for _ in range(_MAX_ESCAPES):
        place = int(np.searchsorted(escapes, at))
        if place == len(escapes):
            break
        escape = int(escapes[place])
        if escape > at:
            runs = pairs[at : min(escape, at + width - x)]  # each has a pixel at least
            row = _expanded(runs, of_four)[: width - x]
            found[y, x : x + len(row)] = row
            x, num_given = x + len(row), num_given + len(row)
        code, at = int(pairs[escape, 1]), escape + 1
        if code == 0:
            x, y = 0, y + 1
        elif code == 1:
            break
        elif code == 2:
            if at == len(pairs):
                break
            x, y, at = min(width, x + int(pairs[at, 0])), y + int(pairs[at, 1]), at + 1
        else:
            num_bytes = (code + 1) // 2 if of_four else code
            literal = data[2 * at : 2 * at + num_bytes]
            if len(literal) < num_bytes:
                break
            row = (_unpacked(literal[None], 4)[0] if of_four else literal)[: min(code, width - x)]
            found[y, x : x + len(row)] = row
            x, at, num_given = x + len(row), at + (num_bytes + 1) // 2, num_given + len(row)
        if y >= height:
            break
    else:
        raise ImageError("too_large", f"the picture is in more than {_MAX_ESCAPES:,} parts")
    # Runs behind the last escape, where the mark of the end is missing.
    if y < height and place == len(escapes) and at < len(pairs) and x < width:
        row = _expanded(pairs[at : at + width - x], of_four)[: width - x]
        found[y, x : x + len(row)] = row
        x, num_given = x + len(row), num_given + len(row)
    if y < height - 1 or (y < height and place == len(escapes) and x < width):
        raise ImageError("truncated", f"the pixels end in row {y + 1:,} of {height:,}")
    if num_given < _LEAST_GIVEN * width * height:
        raise ImageError("truncated", f"{num_given:,} of {width * height:,} pixels")
    return found


def _expanded(runs: "npt.NDArray[Any]", of_four: bool) -> Indices:
    """Pixels of runs, each a number and a value or, of 4 bits, two values in turn."""
    counts, values = runs[:, 0].astype(np.int64), runs[:, 1]
    if not of_four:
        return np.repeat(values, counts)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.where(within % 2 == 0, np.repeat(values >> 4, counts), np.repeat(values & 15, counts))
