"""What the bytes of a GIF say before any decoder sees them.

Only the first frame counts, and a decoder is given a file that holds nothing else: a screen of that frame's size, its
colours, its pixels. The layout is that of the GIF89a specification, sections 17 to 26.
"""

import struct
from dataclasses import dataclass

from seedlings_spark.errors import ImageError

# A file of 64 MB in blocks of 255 bytes has a quarter of a million. Looking at a million takes a second.
_MAX_BLOCKS = 1_000_000


@dataclass(frozen=True)
class Frame:
    """The first frame of a GIF.

    Args:
        content: A GIF of nothing but this frame.
        canvas: (width, height) of the whole picture.
        place: (left, upper) of the frame in it.
        size: (width, height) of the frame.
        transparent: The transparent one of its colours, or None.
    """

    content: bytes
    canvas: tuple[int, int]
    place: tuple[int, int]
    size: tuple[int, int]
    transparent: int | None


def first_frame(content: bytes) -> Frame:
    """Find the first frame of a GIF.

    Raises:
        ImageError: The file ends within it, or it has no pixels, or is in more parts than any real one.
    """
    try:
        return _first_frame(content)
    except (IndexError, struct.error):
        raise ImageError("truncated", "the file ends before the end of its first frame") from None


def _first_frame(content: bytes) -> Frame:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + _table_length(flags)
    table, transparent = content[13:at], None
    num_blocks = 0
    while content[at] != 0x2C:
        if content[at] == 0x3B:
            raise ImageError("corrupt", "a GIF without a frame")
        if content[at] != 0x21:  # padding
            at += 1
            num_blocks += 1
        else:
            if content[at + 1] == 0xF9 and content[at + 2] >= 4:
                transparent = content[at + 6] if content[at + 3] & 1 else None
            at, more = _behind_blocks(content, at + 2, _MAX_BLOCKS - num_blocks)
            num_blocks += more
        if num_blocks > _MAX_BLOCKS:
            raise ImageError("too_large", f"the picture is in more than {_MAX_BLOCKS:,} parts")
    left, upper, frame_width, frame_height, frame_flags = struct.unpack_from("<HHHHB", content, at + 1)
    if frame_width == 0 or frame_height == 0:
        raise ImageError("corrupt", f"a first frame of {frame_height} x {frame_width} pixels")
    start = at + 10
    pixels = start + _table_length(frame_flags)
    end, _ = _behind_blocks(content, pixels + 1, _MAX_BLOCKS)
    made = b"".join(
        (
            content[:6],
            struct.pack("<HHB", frame_width, frame_height, flags),
            content[11:13],
            table,
            b",",
            struct.pack("<HHHHB", 0, 0, frame_width, frame_height, frame_flags),
            content[start:end],
            b";",
        )
    )
    canvas = (max(width, left + frame_width), max(height, upper + frame_height))
    return Frame(made, canvas, (left, upper), (frame_width, frame_height), transparent)


def _table_length(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _behind_blocks(content: bytes, at: int, most: int) -> tuple[int, int]:
    """Where a sequence of blocks ends, and how many they are."""
    num_blocks = 0
    while content[at]:
        at += content[at] + 1
        num_blocks += 1
        if num_blocks > most:
            raise ImageError("too_large", f"the picture is in more than {_MAX_BLOCKS:,} parts")
    return at + 1, num_blocks
