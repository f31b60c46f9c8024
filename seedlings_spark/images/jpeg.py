"""What the bytes of a JPEG say before any decoder sees them.

A decoder is given the file without the segments that do not matter to its pixels, up to the mark of its end. Nothing
else that a JPEG may hold, however large or damaged, can then decide whether there is a picture. The layout is that of
ITU-T T.81, annexes B and G.
"""

import re
import struct
from dataclasses import dataclass

from seedlings_spark.errors import ImageError

# So many take a fifth of a second to look at; real files have some dozens.
_MAX_SEGMENTS = 100_000
_MAX_SCANS = 1000  # real ones have about ten, however small the picture is
_MAX_EXIFS = 16  # EXIF of more than 64 kB is in several segments, which Pillow joins one by one
_MARK = re.compile(rb"\xff+([^\x00\xff])")
# Behind 0xFF in the data of a scan: a byte of it, and the marks from which a decoder may start again.
_IN_SCAN = frozenset({0x00, *range(0xD0, 0xD8)})
_END, _SCAN, _NUMBER_OF_LINES, _COMMENT = 0xD9, 0xDA, 0xDC, 0xFE
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class Essence:
    """A JPEG without what does not matter.

    Args:
        content: The file.
        kind: What it is, if it is of a kind that few programs read, or None.
        num_scans: How many passes over its pixels it has.
    """

    content: bytes
    kind: str | None
    num_scans: int


def essence(content: bytes) -> Essence:
    """Leave out of a JPEG what does not matter to its pixels or to how it lies, and see whether all parts are there.

    Raises:
        ImageError: It lacks its end, a component, or of a progressive one the last bits of some coefficients; or it is
            in more parts than any real file.
    """
    parts: list[bytes] = [b"\xff\xd8"]
    view = memoryview(content)
    frame, frame_data, scans = 0, b"", []
    has_lines, num_exifs, has_xmp = False, 0, False
    at, mark = 2, 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARK.search(content, at)
        if found is None:
            raise ImageError("truncated", "the file ends without the mark of its end (EOI)")
        mark, start = found[1][0], found.end()
        if mark == _END:
            break
        if mark in _WITHOUT_LENGTH:
            at = start
            continue
        end = start + int.from_bytes(content[start : start + 2], "big")
        if start + 2 > len(content) or end > len(content):
            raise ImageError("truncated", f"the file ends within a segment {mark:02X}")
        if end < start + 2:
            raise ImageError("corrupt", f"a segment {mark:02X} of {end - start} bytes")
        data = view[start + 2 : min(end, start + 2 + 64)].tobytes()
        at = end
        if 0xE0 <= mark <= 0xEF or mark == _COMMENT:
            if mark == 0xE1 and data.startswith(b"Exif\0") and num_exifs < _MAX_EXIFS:
                num_exifs += 1
            elif mark == 0xE1 and data.startswith(_XMP) and not has_xmp:
                has_xmp = True
            elif not _tells_colours(mark, data):
                continue
        elif mark in _FRAMES and not frame:
            frame, frame_data = mark, content[start + 2 : end]
        elif mark == _NUMBER_OF_LINES:
            has_lines = True
        elif mark == _SCAN:
            scans.append(content[start + 2 : end])
            if len(scans) > _MAX_SCANS:
                raise ImageError("too_large", f"more than {_MAX_SCANS:,} scans")
            at = _end_of_scan(content, end)
        parts.append(b"\xff" + bytes([mark]))
        parts.append(view[start:at])  # type: ignore[arg-type]
    else:
        raise ImageError("too_large", f"the picture is in more than {_MAX_SEGMENTS:,} parts")
    if not frame or not scans:
        raise ImageError("corrupt", "a JPEG without pixel data (SOF and SOS)")
    kind = _kind(frame, frame_data, has_lines)
    if frame not in _LOSSLESS:
        _check_scans(frame, frame_data, scans)
    parts.append(b"\xff\xd9")
    return Essence(b"".join(parts), kind, len(scans))


def _end_of_scan(content: bytes, at: int) -> int:
    """Where the first mark behind a scan's data is."""
    while (at := content.find(b"\xff", at)) >= 0 and at + 1 < len(content):
        code = content[at + 1]
        if code in _IN_SCAN:
            at += 2
        elif code == 0xFF:
            at += 1
        else:
            return at
    raise ImageError("truncated", "the file ends without the mark of its end (EOI)")


def _tells_colours(mark: int, data: bytes) -> bool:
    """Tell whether a segment says what colours the components are."""
    return (mark == 0xE0 and data.startswith(b"JFIF\0") and len(data) >= 14) or (
        mark == 0xEE and data.startswith(b"Adobe") and len(data) >= 12
    )


def _kind(frame: int, data: bytes, has_lines: bool) -> str | None:
    if len(data) < 6:
        return None
    if frame in _LOSSLESS:
        return "a lossless JPEG"
    if frame in _HIERARCHICAL:
        return "a hierarchical JPEG"
    if data[0] != 8:
        return f"a JPEG of {data[0]} bits a channel"
    if has_lines and data[1:3] == b"\0\0":
        return "a JPEG that says its height behind its pixels"
    if data[5] not in (1, 3, 4):
        return f"a JPEG of {data[5]} components"
    return None


def _check_scans(frame: int, data: bytes, scans: list[bytes]) -> None:
    """Refuse a JPEG of which a scan is missing: a component, or of a progressive one the last bits of a coefficient."""
    try:
        components = {data[6 + 3 * number] for number in range(data[5])}
        # Of each component's 64 coefficients: how many of the last bits are still to come.
        missing = {component: [99] * 64 for component in components}
        for scan in scans:
            number = scan[0]
            first, last, bits = struct.unpack_from("BBB", scan, 1 + 2 * number)
            for place in range(number):
                of_component = missing.get(scan[1 + 2 * place])
                if of_component is None:
                    continue
                if frame in _PROGRESSIVE:
                    of_component[first : last + 1] = [bits & 15] * (min(last, 63) + 1 - first)
                else:
                    of_component[:] = [0] * 64
    except (IndexError, struct.error):
        return  # for the decoder to say
    for component, of_component in missing.items():
        lacking = sum(bits != 0 for bits in of_component)
        if lacking:
            raise ImageError(
                "truncated", f"the scans of {lacking} of 64 coefficients of component {component} are missing"
            )
