"""What the bytes of a TIFF say before any decoder sees them.

A decoder is given the file with another directory: the first one's entries that decide how the picture looks, each
within its bounds, so that nothing else in a TIFF can decide whether there is a picture, and no table costs more memory
than the picture has parts. The layouts are those of TIFF 6.0, section 2, and of BigTIFF.
"""

import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from seedlings_spark.errors import ImageError

# Bytes a value of each type: TIFF 6.0, page 15, and BigTIFF's.
_TYPE_LENGTHS = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES = 256, 257, 258, 259, 262, 266, 277
STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_LENGTHS, PLANAR = 273, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS = 322, 323, 324, 325
SUBSAMPLING, XMP = 530, 700
_TABLES = {STRIP_OFFSETS, STRIP_LENGTHS, TILE_OFFSETS, TILE_LENGTHS}
# With fill order, orientation, fax options, predictor, colour map, inks, extra samples, sample format, JPEG tables (512
# to 521: those of the first way in which TIFF held JPEG), YCbCr's coefficients, positions and range, and XMP, which may
# say the orientation.
_USED = frozenset(
    {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS_PER_STRIP, PLANAR, TILE_WIDTH, TILE_HEIGHT, *_TABLES,
     266, 274, 292, 293, 317, 320, 332, 338, 339, 347, *range(512, 522), 529, SUBSAMPLING, 531, 532, XMP}
)  # fmt: skip
# Without which nothing can be made of a TIFF; another entry of a type that is not known is as if it were not there.
_DECISIVE = frozenset(
    {
        WIDTH,
        HEIGHT,
        BITS,
        COMPRESSION,
        PHOTOMETRIC,
        SAMPLES,
        ROWS_PER_STRIP,
        PLANAR,
        TILE_WIDTH,
        TILE_HEIGHT,
        *_TABLES,
    }
)
_MAX_VALUE = 1 << 20  # bytes of an entry that is not a table of strips: a colour map of 16 bits has 400 kB
# 8000 x 8000 pixels in tiles of 16 x 16. Pillow makes 257 bytes of each.
_MAX_STRIPS = 250_000
_UNCOMPRESSED, _FAX_3, _FAX_4, _OLD_JPEG, _JPEG = 1, 3, 4, 6, 7
# Bits of T.4's mark at the end of a line: eleven zeros or more and a one. Bytes in which a strip's last two marks
# are; bytes that are looked at together, of which each bit takes a byte and each one eight.
_END_OF_LINE, _FAX_TAIL, _FAX_BLOCK = 12, 4, 1 << 18
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_YCBCR = 6


def essence(content: bytes, max_pixels: int) -> tuple[bytes, int]:
    """Make a TIFF with a directory of the entries that decide how the first picture of another looks.

    Args:
        content: A file that begins as a TIFF does.
        max_pixels: Most pixels that the picture or one of its tiles may have: a tile is decoded whole.

    Returns:
        The new file, and its compression.

    Raises:
        ImageError: The file ends within a part that is needed, lacks some, or its parts are too many or too large.
    """
    order = "<" if content.startswith(b"II") else ">"
    entries = _directory(content, order, b"+" in content[2:4])
    values = {tag: _values(content, order, entry) for tag, entry in entries.items() if tag not in _TABLES}

    def number(tag: int, default: int) -> int:
        found = values.get(tag)
        return int(found[0]) if found is not None and len(found) else default

    width, height = number(WIDTH, 0), number(HEIGHT, 0)
    _check_pixels((width, height), max_pixels, "of")
    compression = number(COMPRESSION, _UNCOMPRESSED)

    is_tiled = TILE_WIDTH in entries and TILE_HEIGHT in entries
    tables = (TILE_OFFSETS, TILE_LENGTHS) if is_tiled else (STRIP_OFFSETS, STRIP_LENGTHS)
    # Some programs say of tiles what is to be said of strips.
    found = tables if tables[0] in entries else (STRIP_OFFSETS, STRIP_LENGTHS)
    part = width, min(number(ROWS_PER_STRIP, height), height)
    if is_tiled:
        part = number(TILE_WIDTH, 0), number(TILE_HEIGHT, 0)
    _check_pixels(part, max_pixels, "in parts of")
    across, down = -(-width // part[0]), -(-height // part[1])
    samples = number(SAMPLES, 1)
    is_planar = number(PLANAR, 1) == 2
    num_parts = across * down * (samples if is_planar else 1)
    kind = "tiles" if is_tiled else "strips"
    if num_parts > _MAX_STRIPS:
        raise ImageError("too_large", f"the picture is in {num_parts:,} {kind}, more than {_MAX_STRIPS:,}")

    if found[0] in entries:
        offsets = _numbers(content, order, entries[found[0]], kind, num_parts)
        lengths = None
        if found[1] in entries:
            lengths = _numbers(content, order, entries[found[1]], kind, num_parts, "the lengths of ")
        needed = None
        if compression == _UNCOMPRESSED:
            needed = _needed(values, part, (height, down, across), samples, is_planar, is_tiled, num_parts)
        _check_parts(content, kind, offsets, lengths, needed)
        if compression in (_FAX_3, _FAX_4) and lengths is not None:
            rows = _rows_of_parts(part[1], (height, down, across), num_parts, is_tiled=is_tiled)
            parts = _data_of_parts(content, offsets, lengths, is_reversed=number(FILL_ORDER, 1) == 2)
            _check_fax(parts, rows, kind, is_fax_4=compression == _FAX_4)
        if compression == _JPEG and lengths is not None:
            _check_jpeg(content, offsets, lengths, kind)
    elif compression != _OLD_JPEG:
        raise ImageError("corrupt", f"a TIFF that does not say where its {kind} are")

    made: dict[int, tuple[int, int, bytes]] = {}
    for tag, (type_, count, data) in entries.items():
        if tag in found:
            made[tables[found.index(tag)]] = (type_, num_parts, data[: num_parts * _TYPE_LENGTHS[type_]])
        elif tag not in _TABLES and (is_tiled or tag not in (TILE_WIDTH, TILE_HEIGHT)):
            made[tag] = (type_, count, data)
    return _with_directory(content, order, made), compression


def _numbers(
    content: bytes, order: str, entry: tuple[int, int, bytes], kind: str, num_parts: int, what: str = ""
) -> npt.NDArray[Any]:
    """A table with a number for each part."""
    numbers = _table(content, order, entry, num_parts)
    if len(numbers) < num_parts:
        raise ImageError("truncated", f"{what}{len(numbers):,} of {num_parts:,} {kind}")
    return numbers


def _data_of_parts(
    content: bytes, offsets: npt.NDArray[Any], lengths: npt.NDArray[Any], *, is_reversed: bool
) -> Iterator[bytes]:
    """The bytes of each strip or tile, the most significant bit first."""
    for start, length in zip(offsets, lengths, strict=True):
        data = content[int(start) : int(start + length)]
        yield data.translate(_REVERSED) if is_reversed else data


def _check_fax(parts: Iterable[bytes], rows: Iterable[int], kind: str, *, is_fax_4: bool) -> None:
    """Refuse a fax that ends early: libtiff fills it up with white."""
    for data, count in zip(parts, rows, strict=True):
        fax = np.frombuffer(data.rstrip(b"\0"), np.uint8)
        if not (_ends_as_fax_4(fax) if is_fax_4 else _lines_of_fax_3(fax) >= count - 1):
            raise ImageError("truncated", f"a fax without its end in one of the {kind}")


def _check_jpeg(content: bytes, offsets: npt.NDArray[Any], lengths: npt.NDArray[Any], kind: str) -> None:
    """Refuse JPEG that ends early: libtiff adds an end where there is none."""
    for start, length in zip(offsets, lengths, strict=True):
        if content.rfind(b"\xff\xd9", int(start), int(start + length)) < 0:
            raise ImageError("truncated", f"JPEG without an end in one of {len(lengths):,} {kind}")


def _check_pixels(size: tuple[int, int], max_pixels: int, what: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError("corrupt", f"a TIFF {what} {height} x {width} pixels")
    if width * height > max_pixels:
        raise ImageError("too_large", f"{height} x {width} pixels, more than the {max_pixels} allowed")


def _directory(content: bytes, order: str, is_big: bool) -> dict[int, tuple[int, int, bytes]]:
    """The used entries of the first directory: tag -> (type, count, data)."""
    try:
        return _entries(content, order, is_big)
    except struct.error:
        raise ImageError("truncated", "the file ends within its directory") from None


def _entries(content: bytes, order: str, is_big: bool) -> dict[int, tuple[int, int, bytes]]:
    head, count_, entry_, inline, pointer = (8, "Q", "HHQ", 8, "Q") if is_big else (4, "H", "HHI", 4, "I")
    (at,) = struct.unpack_from(order + pointer, content, head)
    (num_entries,) = struct.unpack_from(order + count_, content, at)
    at += struct.calcsize(order + count_)
    if num_entries > 0xFFFF:
        raise ImageError("corrupt", f"a directory of {num_entries:,} entries")
    found: dict[int, tuple[int, int, bytes]] = {}
    for _ in range(num_entries):
        tag, type_, count = struct.unpack_from(order + entry_, content, at)
        where = at + struct.calcsize(order + entry_)
        at = where + inline
        if at > len(content):
            raise ImageError("truncated", "the file ends within its directory")
        if tag not in _USED or tag in found:
            continue
        if type_ not in _TYPE_LENGTHS:
            if tag not in _DECISIVE:
                continue
            raise ImageError("corrupt", f"entry {tag} is of the unknown type {type_}")
        length = count * _TYPE_LENGTHS[type_]
        if length > inline:
            (where,) = struct.unpack_from(order + pointer, content, where)
        is_whole = where + length <= len(content)
        if tag == XMP and not (is_whole and length <= _MAX_VALUE):
            continue
        if tag not in _TABLES and length > _MAX_VALUE:
            raise ImageError(
                "corrupt", f"entry {tag} has {length:,} bytes, at most {_MAX_VALUE:,} make sense"
            )
        if not is_whole:
            raise ImageError(
                "truncated", f"the file ends {where + length - len(content):,} bytes before entry {tag} does"
            )
        # Of a table no more than may be used: see `essence`.
        most = 8 * _MAX_STRIPS if tag in _TABLES else length
        found[tag] = (type_, count, content[where : where + min(length, most)])
    return found


def _values(content: bytes, order: str, entry: tuple[int, int, bytes]) -> "np.ndarray[Any, Any] | None":
    type_, _, data = entry
    if type_ not in _WHOLE_NUMBERS:
        return None
    return np.frombuffer(
        data,
        order
        + _WHOLE_NUMBERS[type_].replace("I", "u4").replace("H", "u2").replace("Q", "u8").replace("B", "u1"),
    )


def _table(content: bytes, order: str, entry: tuple[int, int, bytes], most: int) -> "np.ndarray[Any, Any]":
    values = _values(content, order, entry)
    if values is None:
        raise ImageError("corrupt", f"a table of strips or tiles of type {entry[0]}")
    return values[:most].astype(np.float64)  # exact far beyond any file's length, and never overflowing


def _needed(
    values: "dict[int, np.ndarray[Any, Any] | None]",
    part: tuple[int, int],
    grid: tuple[int, int, int],
    samples: int,
    is_planar: bool,
    is_tiled: bool,
    num_parts: int,
) -> "np.ndarray[Any, Any]":
    """Bytes that each part of an uncompressed picture has to have."""
    width, rows = part
    declared = values.get(BITS)
    bits = [int(value) for value in declared[:64]] if declared is not None and len(declared) else [1]
    pixel = bits[0] if is_planar else sum(bits[:samples]) if len(bits) >= samples else bits[0] * samples
    row = math.ceil(width * pixel / 8)
    sampled, photometric = values.get(SUBSAMPLING), values.get(PHOTOMETRIC)
    is_ycbcr = photometric is not None and photometric[:1].tolist() == [_YCBCR]
    if is_ycbcr and sampled is not None and sampled[:2].tolist() != [1, 1]:
        raise ImageError(
            "unsupported_format", "an uncompressed TIFF with fewer samples of colour than of brightness"
        )
    return _rows_of_parts(rows, grid, num_parts, is_tiled=is_tiled) * float(row)


def _rows_of_parts(
    rows: int, grid: tuple[int, int, int], num_parts: int, *, is_tiled: bool
) -> "np.ndarray[Any, Any]":
    """Rows of each strip or tile."""
    height, down, across = grid
    in_last = rows if is_tiled else height - (down - 1) * rows
    column = np.repeat([*[rows] * (down - 1), in_last], across)
    return np.tile(column, num_parts // len(column))


def _ends_as_fax_4(fax: "np.ndarray[Any, Any]") -> bool:
    """Whether a strip ends with the two marks that T.6 has there. libtiff takes whatever there is."""
    bits = np.unpackbits(fax[-_FAX_TAIL:])
    ones = np.flatnonzero(bits)
    return len(ones) > 1 and int(ones[-1] - ones[-2]) == _END_OF_LINE


def _lines_of_fax_3(fax: "np.ndarray[Any, Any]") -> int:
    """How many lines T.4's marks in a strip stand before: marks with another one right behind them end the page."""
    num_lines, last, mark = 0, -1, -1
    for start in range(0, len(fax), _FAX_BLOCK):
        ones = np.flatnonzero(np.unpackbits(fax[start : start + _FAX_BLOCK])) + 8 * start
        if not len(ones):
            continue
        marks = ones[np.diff(ones, prepend=last) >= _END_OF_LINE]
        num_lines += int(np.count_nonzero(np.diff(marks, prepend=mark) > _END_OF_LINE + 1))
        last, mark = int(ones[-1]), int(marks[-1]) if len(marks) else mark
    return num_lines + (last > mark)


def _check_parts(
    content: bytes,
    kind: str,
    offsets: "np.ndarray[Any, Any]",
    lengths: "np.ndarray[Any, Any] | None",
    needed: "np.ndarray[Any, Any] | None",
) -> None:
    """Refuse a picture of which a part is missing, short, or beyond the end of the file."""
    if lengths is not None and (empty := int(np.count_nonzero((lengths == 0) | (offsets == 0)))):
        raise ImageError("corrupt", f"{empty:,} of {len(offsets):,} {kind} have no bytes")
    if lengths is not None and needed is not None and (short := int(np.count_nonzero(lengths < needed))):
        raise ImageError(
            "truncated", f"{short:,} of {len(offsets):,} {kind} have fewer bytes than pixels need"
        )
    used = needed if needed is not None else lengths
    if used is None:
        return
    beyond = float((offsets + used).max()) - len(content)
    if beyond > 0:
        raise ImageError("truncated", f"the file ends {beyond:,.0f} bytes before the last of its {kind} does")
    if used.sum() > 4 * len(content):  # each is read anew, however often the same bytes are named
        raise ImageError("too_large", f"{kind} of {used.sum():,.0f} bytes in a file of {len(content):,}")


def _with_directory(content: bytes, order: str, entries: dict[int, tuple[int, int, bytes]]) -> bytes:
    """The file with these entries as its one directory, behind all else: no BigTIFF, of which Pillow reads but half."""
    start = len(content) + len(content) % 2
    values_at = start + 2 + 12 * len(entries) + 4
    directory, values = [struct.pack(order + "H", len(entries))], b""
    for tag, (type_, count, data) in sorted(entries.items()):
        if type_ in (16, 18):  # numbers of 64 bits
            wide = np.frombuffer(data, order + "u8")
            type_, data = 4, np.minimum(wide, 0xFFFFFFFF).astype(order + "u4").tobytes()
        directory.append(struct.pack(order + "HHI", tag, type_, count))
        if len(data) <= 4:
            directory.append(data.ljust(4, b"\0"))
        else:
            directory.append(struct.pack(order + "I", values_at + len(values)))
            values += data + bytes(len(data) % 2)
    head = content[:2] + struct.pack(order + "HI", 42, start)
    return b"".join((head, content[8:], bytes(start - len(content)), *directory, bytes(4), values))
