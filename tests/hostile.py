"""Draws files that are broken, hostile or merely unusual, each with what is to become of it.

As a program, `python -m tests.hostile`, it does in a process of its own what the tests compare: see `main`.
"""

import base64
import io
import json
import pickle
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from seedlings_spark import images
from seedlings_spark.config import ScoringOptions
from seedlings_spark.corpus import decoding, listings

PREDICTED = "predicted"
# More than any picture of the cases has in one of its dimensions, and above `images.MAX_PIXELS` in both.
HUGE = 16_000
TASK = decoding.DecodeTask((12, 10), "stretch", images.FORMATS, images.MAX_PIXELS, 64 * 1024 * 1024)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """One file.

    Args:
        path: Below the folder of all cases; the first folder says what is odd about it, and is its species.
        content: Its bytes.
        outcomes: What may become of it: `PREDICTED`, or reasons. More than one only where the format has no
            checksum, so that it depends on the decoder whether damage is noticed.
        like: Path of the case whose probabilities it has, if it is predicted.
        tolerance: By how much these may differ.
    """

    path: str
    content: bytes
    outcomes: frozenset[str]
    like: str | None = None
    tolerance: float = 1e-5  # float32 sums in the order of another batch

    @property
    def group(self) -> str:
        return self.path.partition("/")[0]


# What a camera stores for each EXIF orientation, so that turning it as told shows the upright picture.
STORED_FOR: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@dataclass(frozen=True)
class Row:
    """What has become of one file."""

    path: str
    outcome: str
    stage: str | None
    detail: str | None
    content_hash: str | None
    probabilities: list[float] | None


@cache
def cases() -> tuple[Case, ...]:
    drawn = tuple(
        case
        for group in (
            _whole,
            _cut,
            _damaged,
            _with_garbage,
            _misnamed,
            _pretending,
            _bombs,
            _frames,
            _colours,
            _orientations,
            _metadata,
            _names,
        )
        for case in group()
    )
    assert len({case.path for case in drawn}) == len(drawn)
    return drawn


def write(root: Path) -> None:
    """Write all cases below a folder."""
    for case in cases():
        file = root / case.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(case.content)


# --- pictures -------------------------------------------------------------------------------------------


def smooth(height: int = 37, width: int = 53, phase: float = 0.0) -> Pixels:
    """A picture without any symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / (width - 1)
    green = 255 * y / (height - 1)
    blue = 127 + 120 * np.sin(x / 9 + phase) * np.cos(y / 7)
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def grey() -> Pixels:
    """A grey picture of shape (height, width) in which every version of it is exact."""
    return np.ascontiguousarray(smooth()[:, :, 2])


def encoded(pixels: "Pixels | npt.NDArray[Any] | Image.Image", format_: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    picture.save(stream, format_, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, data: bytes, extra: bytes = b"") -> bytes:
    """A PNG made by hand: `data` are the rows with their filters, before compression."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")


def rows(values: npt.NDArray[Any]) -> bytes:
    """The rows of a PNG, unfiltered; `values` are bytes of shape (height, length of a row)."""
    return np.pad(values, ((0, 0), (1, 0))).tobytes()


@cache
def kinds() -> dict[str, tuple[str, bytes]]:
    """Name -> (ending, content) of one picture: every format of `images.FORMATS`, and what each is besides."""
    pixels, palette = smooth(), Image.fromarray(smooth()).quantize(64)
    return {
        "png": ("png", encoded(pixels, "PNG")),
        "palette png": ("png", encoded(palette, "PNG")),
        "16-bit png": ("png", encoded(grey().astype(np.uint16) * 257, "PNG")),
        "jpeg": ("jpg", encoded(pixels, "JPEG")),
        "progressive jpeg": ("jpg", encoded(pixels, "JPEG", progressive=True)),
        "webp": ("webp", encoded(pixels, "WEBP")),
        "lossless webp": ("webp", encoded(pixels, "WEBP", lossless=True)),
        "bmp": ("bmp", encoded(pixels, "BMP")),
        "palette bmp": ("bmp", encoded(palette, "BMP")),
        "tiff": ("tif", encoded(pixels, "TIFF")),
        "lzw tiff": ("tif", encoded(pixels, "TIFF", compression="tiff_lzw")),
        "jpeg tiff": ("tif", encoded(pixels, "TIFF", compression="jpeg")),
        "gif": ("gif", encoded(palette, "GIF")),
    }


# The shortest beginning that says what a file is.
MAGIC = {"png": 8, "jpeg": 3, "webp": 12, "bmp": 2, "tiff": 4, "gif": 6}


def _format(kind: str) -> str:
    return kind.split()[-1]


def _case(path: str, content: bytes, *outcomes: str, **more: Any) -> Case:
    return Case(path, content, frozenset(outcomes), **more)


def _same(path: str, content: bytes, like: str, **more: Any) -> Case:
    """A case that is predicted as another is."""
    return _case(path, content, PREDICTED, like=like, **more)


# --- the cases ------------------------------------------------------------------------------------------


def _whole() -> Iterator[Case]:
    for kind, (ending, content) in kinds().items():
        yield _case(f"whole/{kind}.{ending}", content, PREDICTED)


def _cut() -> Iterator[Case]:
    yield _case("cut/zero length.png", b"", "empty")
    for kind, (ending, content) in kinds().items():
        format_ = _format(kind)
        whole = f"whole/{kind}.{ending}"
        yield _case(f"cut/{kind} half.{ending}", content[: len(content) // 2], "truncated")
        header = content[: MAGIC[format_] + 8]
        yield _case(f"cut/{kind} in its header.{ending}", header, "truncated")
        # The last byte is the end of a checksum, of a marker or padding, or else the last pixel's: either
        # nothing is missing, or it is noticed.
        last = _case(f"cut/{kind} last byte.{ending}", content[:-1], PREDICTED, "truncated", like=whole)
        yield last
        if kind == format_:
            yield _case(f"cut/{kind} magic.{ending}", content[: MAGIC[format_]], "truncated")
            # One byte says PNG or JPEG; "B", "I", "R" and "G" say nothing.
            one = "truncated" if kind in ("png", "jpeg") else "not_an_image"
            yield _case(f"cut/{kind} one byte.{ending}", content[:1], one)
            yield _case(f"cut/{kind} magic, then zeros.{ending}", content[: MAGIC[format_]] + bytes(5000),
                        "truncated", "corrupt")  # fmt: skip


def _flipped(content: bytes, at: int, mask: int = 0xFF) -> bytes:
    damaged = bytearray(content)
    damaged[at] ^= mask
    return bytes(damaged)


def _with_width(format_: str, content: bytes, width: int, height: int) -> bytes:
    """A file of `kinds` that claims another size."""
    if format_ == "png":
        header = struct.pack(">II", width, height) + content[24:29]
        return content[:8] + chunk(b"IHDR", header) + content[33:]
    if format_ == "jpeg":
        at = next(content.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in content) + 5
        return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]
    if format_ == "bmp":
        return content[:18] + struct.pack("<ii", width, height) + content[26:]
    if format_ == "gif":
        frame = content.index(b",", 13 + 3 * 64)
        sizes = struct.pack("<HH", width, height)
        return content[:6] + sizes + content[10 : frame + 5] + sizes + content[frame + 9 :]
    if format_ == "webp":
        if content[12:16] == b"VP8L":
            bits = (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14 | content[24] >> 4 << 28
            return content[:21] + struct.pack("<I", bits) + content[25:]
        return content[:26] + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF) + content[30:]
    for tag, old, new in ((256, 53, width), (257, 37, height)):
        found = struct.pack("<HHIHH", tag, 3, 1, old, 0), struct.pack("<HHII", tag, 4, 1, old)
        entry = next(each for each in found if each in content)
        content = content.replace(entry, struct.pack("<HHII", tag, 4, 1, new))
    return content


def _damaged() -> Iterator[Case]:
    generator = np.random.default_rng(17)
    for kind, (ending, content) in kinds().items():
        format_ = _format(kind)
        yield _case(f"damaged/{kind} first byte.{ending}", _flipped(content, 0), "not_an_image")
        # Where pixels are: PNG has a checksum over them; of all others the decoder may notice or not.
        pixels = _flipped(content, len(content) * 3 // 4)
        may_be = ["corrupt"] if format_ == "png" else [PREDICTED, "corrupt", "truncated"]
        yield _case(f"damaged/{kind} among the pixels.{ending}", pixels, *may_be)
        if format_ != "webp":  # has no way to say 0, but for lossy pictures
            nothing = _with_width(format_, content, 0, 0)
            yield _case(f"damaged/{kind} of no pixels.{ending}", nothing, "corrupt", "truncated")
        for number in range(4):
            many = bytearray(content)
            for at in generator.integers(0, len(content), 12):
                many[at] = generator.integers(0, 256)
            anything = (PREDICTED, "corrupt", "truncated", "too_large", "not_an_image", "unsupported_format")
            yield _case(f"damaged/{kind} in twelve places {number}.{ending}", bytes(many), *anything)
    header = _flipped(kinds()["png"][1], 29)
    yield _case("damaged/png header's checksum.png", header, "corrupt")
    still = kinds()["png"][1]  # whose pixels are whole, and only their checksum is wrong: Pillow takes it
    yield _case("damaged/png pixels' checksum.png", _flipped(still, len(still) - 13), "corrupt")
    as_text = kinds()["png"][1].replace(b"\r\n", b"\n")
    yield _case("damaged/png as text.png", as_text, "corrupt")
    again = kinds()["jpeg"][1].decode("utf-8", "replace").encode()  # as a program does that takes it for text
    yield _case("damaged/jpeg as text.jpg", again, "not_an_image")


def _with_garbage() -> Iterator[Case]:
    garbage = np.random.default_rng(3).integers(0, 128, 50_000, np.uint8).tobytes()  # without any marker
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a.txt", "hidden behind a picture")
    for kind, (ending, content) in kinds().items():
        whole = f"whole/{kind}.{ending}"
        yield _same(f"garbage/{kind} random.{ending}", content + garbage, whole)
        yield _same(f"garbage/{kind} zeros.{ending}", content + bytes(1000), whole)
        yield _same(f"garbage/{kind} a zip archive.{ending}", content + archive.getvalue(), whole)
        yield _same(f"garbage/{kind} itself.{ending}", content + content, whole)
    beyond = kinds()["png"][1] + _flipped(chunk(b"IDAT", b"no pixels"), -1)
    yield _same("garbage/png pixels after the end.png", beyond, "whole/png.png")


def _misnamed() -> Iterator[Case]:
    endings = [*(ending for ending, _ in kinds().values()), "txt", "parquet", "gz", ""]
    for place, (kind, (ending, content)) in enumerate(kinds().items()):
        other = next(each for each in endings[place:] if each != ending)
        yield _same(f"misnamed/{kind}.{other}", content, f"whole/{kind}.{ending}")
        yield _same(f"misnamed/{kind} without ending", content, f"whole/{kind}.{ending}")


def _pretending() -> Iterator[Case]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("picture.png", kinds()["png"][1])
    for name, content in {
        "text": b"no picture at all\n",
        "a byte order mark": b"\xef\xbb\xbfpath,species\n",
        "utf-16": "kein Bild".encode("utf-16"),
        "html": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "json": b'{"error": "no such file"}',
        "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "svg with a declaration": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
        "zip": archive.getvalue(),
        "gzip of a png": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + zlib.compress(kinds()["png"][1]),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "parquet": b"PAR1" + bytes(100) + b"PAR1",
        "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(20),
        "mp4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41",
        "mpeg": b"\0\0\x01\xb3" + bytes(100),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(100),
        "pointer to git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "base64 of a png": b"data:image/png;base64,iVBORw0KGgo=",
        "zeros": bytes(4096),
        "spaces": b" " * 100,
        "one zero": b"\0",
    }.items():
        yield _case(f"pretending/{name}.png", content, "not_an_image")
    small = Image.fromarray(smooth(9, 11))
    for name, content in {
        "ppm": encoded(small, "PPM"),
        "tga": encoded(small, "TGA"),
        "pcx": encoded(small, "PCX"),
        "ico": encoded(small, "ICO", sizes=[(9, 9)]),
        "icns": encoded(small.resize((16, 16)), "ICNS"),
        "sgi": encoded(small, "SGI"),
        "dds": encoded(small, "DDS"),
        "eps": encoded(small, "EPS"),
        "jpeg 2000": encoded(small, "JPEG2000"),
        "psd": b"8BPS\0\1" + bytes(40),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    }.items():
        yield _case(f"pretending/{name}.jpg", content, "unsupported_format")


def _webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _canvas(width: int, height: int, flags: int = 0) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return _webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size)


def _tiff(*tags: tuple[int, int], size: int = 300) -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)).ljust(size, b"\0")


def _gif_of_large_frame(extension: bytes = b"") -> bytes:
    """A screen of 8 x 8 with a frame beyond it."""
    start = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6) + extension
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65_000, 65_000, 0)
    return start + b"\x21\xf9\x04\x08\0\0\0\0" + frame + b"\x02\x02\x44\x01\x00;"


def _bombs() -> Iterator[Case]:
    """Refused by what their headers say, with one exception for WebP, and text that nobody inflates."""
    side = 30_000
    legal = png(side, side, 1, 0, bytes((side // 8 + 1) * side))
    assert len(legal) < 200_000
    yield _case("bombs/legal.png", legal, "too_large")
    for kind, (ending, content) in kinds().items():
        claims = _with_width(_format(kind), content, HUGE, HUGE)
        yield _case(f"bombs/{kind}.{ending}", claims, "too_large")
    largest = _with_width("jpeg", kinds()["jpeg"][1], 65_500, 65_500)
    yield _case("bombs/largest jpeg.jpg", largest, "too_large")
    flat = _with_width("png", kinds()["png"][1], 0x7FFFFFFF, 1)
    yield _case("bombs/flat.png", flat, "too_large")
    yield _case("bombs/top down.bmp", _with_width("bmp", kinds()["bmp"][1], HUGE, -HUGE), "too_large")
    old = b"BM" + struct.pack("<IHHIIHHHH", 100, 0, 0, 26, 12, 65_000, 65_000, 1, 24) + bytes(100)
    yield _case("bombs/old header.bmp", old, "too_large")
    yield _case("bombs/frame.gif", _gif_of_large_frame(), "too_large")
    yield _case("bombs/frame after comments.gif", _gif_of_large_frame(b"\x21\x01\0\x21\xfe\0"), "too_large")
    extended = _riff(_canvas(HUGE, HUGE) + kinds()["webp"][1][12:])
    yield _case("bombs/canvas.webp", extended, "too_large")
    animation = _canvas(HUGE, HUGE, 2) + _webp_chunk(b"ANIM", bytes(6)) + _webp_chunk(b"ANMF", bytes(40))
    yield _case("bombs/animation.webp", _riff(animation), "too_large")
    # The canvas is small, what it holds is not: a damaged file, which nothing may allocate pixels for.
    hidden = _riff(_canvas(8, 8) + _with_width("webp", kinds()["lossless webp"][1], HUGE, HUGE)[12:])
    yield _case("bombs/picture beyond its canvas.webp", hidden, "corrupt")
    shape = ((256, 8), (257, 8), (258, 8))
    tiles = _tiff(*shape, (259, 5), (262, 1), (277, 1), (322, 65536), (323, 65536), (324, 200), (325, 8))
    yield _case("bombs/tiles.tif", tiles, "too_large")
    strip = _tiff((256, HUGE), (257, HUGE), (258, 8), (259, 5), (262, 1), (273, 200), (277, 1), (279, 8))
    yield _case("bombs/strip.tif", strip, "too_large")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(70_000_000)))
    yield _case("bombs/text.png", png(1, 1, 8, 0, bytes(2), text), PREDICTED)
    progressive = encoded(smooth(1000, 1000), "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    many = progressive[:last] + progressive[last:-2] * 2000 + progressive[-2:]
    yield _case("bombs/scans.jpg", many, "too_large")
    just = png(8_000, 8_000, 1, 0, rows(np.full((8_000, 1_000), 255, np.uint8)))
    yield _case("bombs/none, just within the limit.png", just, PREDICTED)
    yield _case("bombs/a row beyond the limit.png", _with_width("png", just, 8_000, 8_001), "too_large")


def _frames() -> Iterator[Case]:
    """Of an animation or a document the first frame or page counts, whatever comes after it."""
    first, second = Image.fromarray(smooth()), Image.fromarray(255 - smooth())
    pages: dict[str, Any] = {"save_all": True, "append_images": [second, second]}
    whole = "whole/png.png"
    animated = encoded(first, "PNG", **pages)
    assert b"acTL" in animated
    yield _same("frames/animated.png", animated, whole)
    poster = encoded(first, "PNG", **{**pages, "append_images": [second]}, default_image=True)
    yield _same("frames/poster, then animated.png", poster, whole)
    yield _same("frames/animated.webp", encoded(first, "WEBP", lossless=True, **pages), whole)
    yield _same("frames/pages.tif", encoded(first, "TIFF", **pages), whole)
    # An own colour table for each frame: 64 colours are not the picture's own.
    palettes = first.quantize(64), second.quantize(64)
    moving = encoded(palettes[0], "GIF", save_all=True, append_images=[palettes[1]])
    yield _same("frames/animated.gif", moving, "whole/gif.gif")
    yield _same("frames/second frame cut.gif", moving[:-300], "whole/gif.gif")
    two = encoded(first, "TIFF", **{**pages, "append_images": [second]})
    yield _same("frames/second page cut.tif", two[: -len(two) // 4], whole)
    jpeg = kinds()["jpeg"][1]
    yield _same("frames/several.mpo", encoded(first, "MPO", **pages), "whole/jpeg.jpg", tolerance=0.01)
    end = two.rindex(bytes(4))
    assert end
    # A page that comes after itself.
    loop = encoded(first, "TIFF")
    directory = struct.unpack_from("<I", loop, 4)[0]
    (entries,) = struct.unpack_from("<H", loop, directory)
    next_ = directory + 2 + 12 * entries
    looped = loop[:next_] + struct.pack("<I", directory) + loop[next_ + 4 :]
    yield _same("frames/page after itself.tif", looped, whole)
    yield _same("frames/two in one file.jpg", jpeg + jpeg, "whole/jpeg.jpg")


def _ycck(pixels: Pixels) -> bytes:
    """A JPEG as Adobe's programs write it: the inks as brightness and colour, and black.

    libjpeg turns it back to 255 - RGB of its first three bands, and Pillow stores bands inverted.
    """
    ink = 255 - pixels
    bands = Image.fromarray(ink).convert("YCbCr").split()
    inverted = [band.point([255 - value for value in range(256)]) for band in bands]
    content = encoded(Image.merge("CMYK", [*inverted, Image.new("L", bands[0].size, 0)]), "JPEG", quality=100)
    at = content.index(b"Adobe") + 11
    assert content[at] == 0
    return content[:at] + b"\2" + content[at + 1 :]


def _cmyk(pixels: Pixels) -> Image.Image:
    ink = [Image.fromarray(np.ascontiguousarray(255 - pixels[:, :, band])) for band in range(3)]
    return Image.merge("CMYK", [*ink, Image.new("L", ink[0].size, 0)])


def _colours() -> Iterator[Case]:
    """A grey picture and one of colours, each stored in many ways."""
    grey_, colours = grey(), smooth()
    height, width = grey_.shape
    deep = grey_.astype(np.uint16) * 257
    opaque = np.full((height, width), 255, np.uint8)
    palette = Image.fromarray(grey_).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    transparent = encoded(palette, "PNG", transparency=bytes([255] * 256))
    two = Image.fromarray(np.stack([grey_, opaque], -1), "LA")
    black = Image.fromarray(colours).convert("1")
    few = Image.fromarray(colours).quantize(200)
    few_colours = np.asarray(few.convert("RGB"))
    hidden = np.dstack([colours, opaque])
    hidden[5:9, 5:9, 3] = 0
    over_black = colours.copy()
    over_black[5:9, 5:9] = 0

    plain = "colours/grey.png"
    yield _case(plain, encoded(grey_, "PNG"), PREDICTED)
    exact = {
        "grey as rgb.png": encoded(np.dstack([grey_] * 3), "PNG"),
        "grey as rgba.png": encoded(np.dstack([grey_] * 3 + [opaque]), "PNG"),
        "grey with alpha.png": encoded(two, "PNG"),
        "grey with alpha.tif": encoded(two, "TIFF"),
        "grey palette.png": encoded(palette, "PNG"),
        "grey palette, all opaque.png": transparent,
        "grey palette.bmp": encoded(palette, "BMP"),
        "grey palette.gif": encoded(palette, "GIF"),
        "grey of 8 bits.bmp": encoded(grey_, "BMP"),
        "grey of 16 bits.png": encoded(deep, "PNG"),
        "grey of 16 bits.tif": encoded(deep, "TIFF"),
        "grey of 32 bits.tif": encoded(grey_.astype(np.int32), "TIFF"),
        "grey float.tif": encoded(grey_.astype(np.float32) / 255, "TIFF"),
        "grey float to 255.tif": encoded(grey_.astype(np.float32), "TIFF"),
        "grey lossless.webp": encoded(np.dstack([grey_] * 3), "WEBP", lossless=True),
        "grey cmyk.tif": encoded(_cmyk(np.dstack([grey_] * 3)), "TIFF"),
        "grey with alpha of 16 bits.png": png(
            width, height, 16, 4,
            rows(np.stack([deep, np.full_like(deep, 65535)], -1).astype(">u2").view(np.uint8).reshape(height, -1)),
        ),
    }  # fmt: skip
    # The largest value decides what is white: see `images.decode`.
    assert 200 < grey_.max() <= 255
    for name, content in exact.items():
        yield _same(f"colours/{name}", content, plain)
    for name, content in {
        "grey.jpg": encoded(grey_, "JPEG", quality=100),
        "grey as rgb.jpg": encoded(np.dstack([grey_] * 3), "JPEG", quality=100),
        "grey cmyk.jpg": encoded(_cmyk(np.dstack([grey_] * 3)), "JPEG", quality=100),
        "grey ycck.jpg": _ycck(np.dstack([grey_] * 3)),
        "grey progressive.jpg": encoded(grey_, "JPEG", quality=100, progressive=True),
    }.items():
        yield _same(f"colours/{name}", content, plain, tolerance=0.01)

    whole = "whole/png.png"
    wide = (colours.astype(np.uint16) * 257).astype(">u2").view(np.uint8).reshape(height, -1)
    deep_alpha = np.dstack([colours, opaque]).astype(np.uint16) * 257
    for name, content in {
        "rgb.bmp": encoded(colours, "BMP"),
        "rgb.tif": encoded(colours, "TIFF"),
        "rgb deflated.tif": encoded(colours, "TIFF", compression="tiff_adobe_deflate"),
        "rgb lossless.webp": encoded(colours, "WEBP", lossless=True),
        "rgba.png": encoded(np.dstack([colours, opaque]), "PNG"),
        "rgba.tif": encoded(np.dstack([colours, opaque]), "TIFF"),
        "rgba lossless.webp": encoded(np.dstack([colours, opaque]), "WEBP", lossless=True),
        "rgb of 16 bits.png": png(width, height, 16, 2, rows(wide)),
        "rgba of 16 bits.png": png(
            width, height, 16, 6, rows(deep_alpha.astype(">u2").view(np.uint8).reshape(height, -1))
        ),
        "cmyk.tif": encoded(_cmyk(colours), "TIFF"),
    }.items():
        yield _same(f"colours/{name}", content, whole)
    for name, content in {
        "rgb.jpg": encoded(colours, "JPEG", quality=100, subsampling=0),
        "cmyk.jpg": encoded(_cmyk(colours), "JPEG", quality=100),
        "ycck.jpg": _ycck(colours),
        "ycbcr.tif": encoded(Image.fromarray(colours).convert("YCbCr"), "TIFF"),
    }.items():
        yield _same(f"colours/{name}", content, whole, tolerance=0.01)

    yield _case("colours/few.png", encoded(few_colours, "PNG"), PREDICTED)
    for ending, format_ in (("bmp", "BMP"), ("gif", "GIF"), ("tif", "TIFF")):
        yield _same(f"colours/few palette.{ending}", encoded(few, format_), "colours/few.png")
    yield _same("colours/few palette.png", encoded(few, "PNG"), "colours/few.png")

    yield _case("colours/a hole.png", encoded(over_black, "PNG"), PREDICTED)
    for name, content in {
        "a hole, transparent.png": encoded(hidden, "PNG"),
        "a hole, transparent.tif": encoded(hidden, "TIFF"),
        "a hole, transparent.webp": encoded(hidden, "WEBP", lossless=True, exact=True),
    }.items():
        yield _same(f"colours/{name}", content, "colours/a hole.png")

    yield _case("colours/one bit as grey.png", encoded(black.convert("L"), "PNG"), PREDICTED)
    for name, content in {
        "one bit.png": encoded(black, "PNG"),
        "one bit.bmp": encoded(black, "BMP"),
        "one bit.gif": encoded(black, "GIF"),
        "one bit.tif": encoded(black, "TIFF"),
        "one bit, fax.tif": encoded(black, "TIFF", compression="group4"),
    }.items():
        yield _same(f"colours/{name}", content, "colours/one bit as grey.png")
    # Lossy, and progressive: the same coefficients in another order.
    yield _same("colours/progressive.jpg", kinds()["progressive jpeg"][1], "whole/jpeg.jpg")
    # Other pictures, which no tolerance may take for these.
    yield _case("colours/negative.png", encoded(255 - colours, "PNG"), PREDICTED)
    yield _case("colours/grey negative.png", encoded(255 - grey_, "PNG"), PREDICTED)


def _orientations() -> Iterator[Case]:
    upright = smooth(phase=1.0)
    for ending, format_, options in (
        ("png", "PNG", {}),
        ("tif", "TIFF", {}),
        ("webp", "WEBP", {"lossless": True}),
        ("jpg", "JPEG", {"quality": 98, "subsampling": 0}),
    ):
        for orientation, store in STORED_FOR.items():
            tags = Image.Exif()
            tags[0x0112] = orientation
            content = encoded(store(upright), format_, exif=tags, **options)
            tolerance = 0.01 if ending == "jpg" else 1e-5
            yield _case(f"orientations/{orientation}.{ending}", content, PREDICTED,
                        like="orientations/1.png", tolerance=tolerance)  # fmt: skip
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    lying = encoded(STORED_FOR[6](upright), "JPEG", quality=98, subsampling=0)
    told = _with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp, lying)
    yield _same("orientations/6 by XMP.jpg", told, "orientations/1.png", tolerance=0.01)
    # Turned the wrong way: what an orientation that is not heeded would look like.
    yield _case("orientations/lying.png", encoded(STORED_FOR[6](upright), "PNG"), PREDICTED)


def _with_segment(marker: int, data: bytes, content: bytes) -> bytes:
    """A JPEG with one segment more, behind its start."""
    return content[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + content[2:]


def _with_chunk(kind: bytes, data: bytes, content: bytes) -> bytes:
    """A PNG with one chunk more, behind its header."""
    return content[:33] + chunk(kind, data) + content[33:]


def _metadata() -> Iterator[Case]:
    """Damaged or odd metadata do not spoil a picture."""
    orientation = struct.pack("<HHI", 0x0112, 3, 1)
    for name, block in {
        "nothing": b"",
        "one byte": b"I",
        "no directory": b"II*\0\xff\xff\xff\xff",
        "directory within the header": b"II*\0\0\0\0\0",
        "many entries": b"II*\0\x08\0\0\0\xff\xff",
        "orientation 0": b"II*\0\x08\0\0\0\1\0" + orientation + b"\0\0\0\0" + bytes(4),
        "orientation 9": b"II*\0\x08\0\0\0\1\0" + orientation + b"\x09\0\0\0" + bytes(4),
        "orientation as text": b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 0x0112, 2, 4) + b"six\0" + bytes(4),
        "orientation divided by 0": b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 5, 1, 26)
        + bytes(4) + struct.pack("<II", 6, 0),
        "four orientations": b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 0x0112, 1, 4) + b"\3\6\3\6" + bytes(4),
        "text": b"this is no TIFF directory at all" * 10,
    }.items():  # fmt: skip
        jpeg, still = kinds()["jpeg"][1], kinds()["png"][1]
        exif = _with_segment(0xE1, b"Exif\0\0" + block, jpeg)
        yield _same(f"metadata/exif {name}.jpg", exif, "whole/jpeg.jpg")
        yield _same(f"metadata/exif {name}.png", _with_chunk(b"eXIf", block, still), "whole/png.png")
        lossless = kinds()["lossless webp"][1]
        if lossless[12:16] == b"VP8L":
            chunks = _canvas(53, 37, 8) + lossless[12:] + _webp_chunk(b"EXIF", block)
            yield _same(f"metadata/exif {name}.webp", _riff(chunks), "whole/lossless webp.webp")
    junk = bytes(range(256)) * 4
    for ending, kind, options in (
        ("png", "png", {}),
        ("jpg", "jpeg", {}),
        ("webp", "lossless webp", {"lossless": True}),
        ("tif", "tiff", {}),
    ):
        format_ = {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper())
        content = encoded(smooth(), format_, icc_profile=junk, **options)
        yield _same(f"metadata/profile of junk.{ending}", content, f"whole/{kind}.{ending}")
    for name, kind, data in (
        ("profile that does not inflate", b"iCCP", b"name\0\0not deflated"),
        ("profile without a name", b"iCCP", b"\0\0" + zlib.compress(junk)),
        ("gamma of 0", b"gAMA", bytes(4)),
        ("chromaticities of 0", b"cHRM", bytes(32)),
        ("resolution of 0", b"pHYs", bytes(9)),
        ("rendering intent", b"sRGB", b"\xff"),
        ("text without end", b"tEXt", b"Comment"),
        ("text of any bytes", b"tEXt", b"Comment\0\xff\xfe\0\1"),
        ("compressed text that is none", b"zTXt", b"Comment\0\0not deflated"),
        ("international text", b"iTXt", b"Comment\0\1\0\0\0not deflated"),
        ("short international text", b"iTXt", b"x"),
        ("animation of no frames", b"acTL", bytes(8)),
        ("private chunk", b"abCd", junk),
        ("empty gamma", b"gAMA", b""),
        ("short chromaticities", b"cHRM", bytes(3)),
        ("short resolution", b"pHYs", b"\1"),
        ("empty rendering intent", b"sRGB", b""),
    ):
        still = _with_chunk(kind, data, kinds()["png"][1])
        yield _same(f"metadata/{name}.png", still, "whole/png.png")
    for name, marker, data in (
        ("pieces of a profile missing", 0xE2, b"ICC_PROFILE\0\x02\x05" + junk),
        ("Photoshop junk", 0xED, b"Photoshop 3.0\0" + junk),
        ("comment", 0xFE, junk),
        ("empty comment", 0xFE, b""),
        ("several pictures, junk", 0xE2, b"MPF\0" + junk),
        ("several pictures, cut", 0xE2, b"MPF\0II*\0"),
        ("XMP", 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        ("FlashPix", 0xE2, b"FPXR\0" + junk),
        ("Adobe segment cut", 0xEE, b"Adobe\0"),
        ("Photoshop cut", 0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        ("JFIF cut", 0xE0, b"JFIF\0"),
    ):
        jpeg = _with_segment(marker, data, kinds()["jpeg"][1])
        yield _same(f"metadata/{name}.jpg", jpeg, "whole/jpeg.jpg")
    # A directory of many entries, each of which says that its value is the whole block.
    entries = b"".join(struct.pack("<HHII", 40_000 + tag, 1, 60_000, 0) for tag in range(4_000))
    block = (b"II*\0" + struct.pack("<IH", 8, 4_000) + entries).ljust(60_000, b"\0")
    swollen = _with_segment(0xE1, b"Exif\0\0" + block, kinds()["jpeg"][1])
    yield _same("metadata/exif that swells.jpg", swollen, "whole/jpeg.jpg")
    swollen = _with_chunk(b"eXIf", block, kinds()["png"][1])
    yield _same("metadata/exif that swells.png", swollen, "whole/png.png")


def _names() -> Iterator[Case]:
    content, whole = kinds()["png"][1], "whole/png.png"
    names = [
        "line\nbreak.png",
        "carriage\rreturn.png",
        "tab\tstop.png",
        "it's.png",
        'a "quoted" one.png',
        "`back` quoted.png",
        "a, comma.png",
        "semi;colon.png",
        "12:30:00.png",
        "file:/not a scheme.png",
        "hdfs:looks like one.png",
        "100%.png",
        "a%20b%2Fc%00.png",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png",
        "cafe\N{COMBINING ACUTE ACCENT}.png",
        "\N{CJK UNIFIED IDEOGRAPH-82D7}\N{SEEDLING}.png",
        "\N{ARABIC LETTER ALEF}\N{RIGHT-TO-LEFT OVERRIDE}gnp.png",
        "zero\N{ZERO WIDTH SPACE}width.png",
        "replaced \N{REPLACEMENT CHARACTER}.png",
        "\x01\x1b[31m\x7f.png",
        ".hidden.png",
        "..twice hidden.png",
        "_underscore.png",
        "_SUCCESS",
        "_temporary/0/part-00000.png",
        ".hidden/_folder/.png",
        "ends in a dot.",
        " spaces around ",
        "back\\slash.png",
        "a\\x41b.png",  # as a name that is not UTF-8 is written
        "*?[a-z]{a,b}.png",
        "#fragment?query=1&b=2.png",
        "$HOME ~ !! -rf.png",
        "-rf",
        "species=a/key=1/__HIVE_DEFAULT_PARTITION__.png",
        "part-00000.snappy.parquet",
        "l" * 251 + ".png",
        "\N{SEEDLING}" * 62 + ".png",  # 252 bytes
        "/".join(["deep" * 20] * 20) + "/x.png",
    ]
    for name in names:
        yield _same(f"names/{name}", content, whole)
    yield _case('names/rejected: a "b", c\'d\né.png', b"no picture", "not_an_image")


# --- in a process of its own ----------------------------------------------------------------------------


def main(what: str, *arguments: str) -> None:
    """Write what was found, as JSON, to the file that is the last of the arguments.

    decode FOLDER RESULT: decode every file of a folder, without Spark.
    largest RESULT: decode the most costly pictures that the limits allow.
    score STORE FOLDER OUTPUT RESULT: score the folder with the store's current version.
    """
    found = {"decode": _decode_folder, "largest": _decode_largest, "score": _score}[what](*arguments[:-1])
    Path(arguments[-1]).write_text(json.dumps(found))


def peak_memory() -> int:
    """Most bytes that this process has had resident (`ru_maxrss` would begin with those of its parent)."""
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _decode_folder(folder: str) -> dict[str, Any]:
    found = {}
    for entry in listings.walk(folder, by_folder=False):
        row = {
            "path": entry.path,
            "length": entry.length,
            "modified": entry.modified,
            "species": None,
            "detail": entry.error,
        }
        started, before = time.process_time(), peak_memory()
        decoded = decoding.read_and_decode(TASK, row)
        seconds = time.process_time() - started
        outcome = decoded.reason or PREDICTED
        found[entry.path] = [outcome, decoded.stage, seconds, peak_memory() - before]
    return {"files": found, "peak": peak_memory()}


def _decode_largest() -> dict[str, Any]:
    side = 8_000
    assert side * side == TASK.max_pixels
    jpeg, still, length = kinds()["jpeg"][1], kinds()["png"][1], TASK.max_bytes
    drawn: dict[str, Callable[[], bytes]] = {
        # 16 and 12 bytes of memory a pixel, more than any other format.
        "all pixels.webp": lambda: encoded(
            Image.new("RGBA", (side, side), (90, 20, 10, 7)), "WEBP", lossless=True, method=0
        ),
        "all pixels.png": lambda: png(side, side, 8, 6, bytes(side * (1 + 4 * side))),
        # Files as long as allowed, whose headers are in very many parts.
        "tiles.tif": lambda: _table_of_tiles(length),
        "escapes.bmp": lambda: _many_escapes(length),
        "padding.jpg": lambda: jpeg[:2] + b"\xff" * (length - len(jpeg)) + jpeg[2:],
        "segments.jpg": lambda: jpeg[:2] + b"\xff\xef\0\2" * ((length - len(jpeg)) // 4) + jpeg[2:],
        "exif.jpg": lambda: jpeg[:2] + b"\xff\xe1\x19\x6cExif\0\0".ljust(6510, b"a") * 10_000 + jpeg[2:],
        "chunks.png": lambda: still[:33] + chunk(b"abCd", b"") * ((length - len(still)) // 12) + still[33:],
        "padding.gif": lambda: _padded_gif(length),
    }
    found = {}
    for name, draw in drawn.items():
        content = draw()
        assert len(content) <= length, name
        started = time.process_time()
        decoded = decoding.read_and_decode(TASK, {}, content)
        found[name] = [decoded.reason or PREDICTED, decoded.stage, time.process_time() - started]
    return {"files": found, "peak": peak_memory()}


def _table_of_tiles(length: int) -> bytes:
    """A TIFF that is a table of tiles and nothing else."""
    number = (length - 300) // 4
    shape = (
        (256, 1, 1),
        (257, 1, number),
        (258, 1, 8),
        (259, 1, 1),
        (262, 1, 1),
        (273, number, 300),
        (277, 1, 1),
    )
    shape += ((278, 1, 1), (279, number, 300))
    entries = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in shape)
    head = (b"II*\0" + struct.pack("<IH", 8, len(shape)) + entries + bytes(4)).ljust(300, b"\0")
    return head + struct.pack("<I", 200) * number


def _many_escapes(length: int) -> bytes:
    """A BMP of run lengths that goes nowhere, step by step."""
    head = struct.pack("<IiiHHIIiiII", 40, 8_000, 8_000, 1, 8, 1, 0, 0, 0, 2, 0) + bytes(8)
    start = b"BM" + struct.pack("<IHHI", length, 0, 0, 14 + len(head)) + head
    return start + b"\0\2\0\0" * ((length - len(start)) // 4)


def _padded_gif(length: int) -> bytes:
    content = kinds()["gif"][1]
    frame = content.index(b",", 13 + 3 * 64)
    return content[:frame] + bytes(length - len(content)) + content[frame:]


def _score(store: str, folder: str, output: str) -> dict[str, Any]:
    from seedlings_spark import scoring
    from seedlings_spark.cluster import session
    from seedlings_spark.models.store import ModelStore

    spark = session.build(
        "hostile",
        {
            "spark.master": "local[2]",
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": "2",
            "spark.ui.showConsoleProgress": "false",
        },
    )
    try:
        run = scoring.score(spark, ModelStore(store, "hostile").resolve(), scoring_options(folder, output))
        return {"encoding": sys.getfilesystemencoding(), "rows": scored(spark, run.path)}
    finally:
        spark.stop()


def scoring_options(folder: str, output: str) -> ScoringOptions:
    """How all cases are scored, in whatever process."""
    limits = {"formats": TASK.formats, "max_pixels": TASK.max_pixels, "max_bytes": TASK.max_bytes}
    return ScoringOptions(folder, output=output, batch_size=32, review=0, **limits)


def scored(spark: Any, run: str) -> list[list[Any]]:
    """The rows of a run, as arguments of `Row`."""
    from seedlings_spark import files

    predictions = spark.read.parquet(files.join(run, "predictions")).collect()
    rejects = spark.read.parquet(files.join(run, "rejects")).collect()
    return [
        [row.path, PREDICTED, None, None, row.content_hash, list(row.probabilities)] for row in predictions
    ] + [[row.path, row.reason, row.stage, row.detail, row.content_hash, None] for row in rejects]


class _Runs:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def write_tables_with_a_class(folder: Path, mark: Path) -> list[Path]:
    """Parquet tables of paths with a column of a Python class, which makes a file where somebody unpickles it.

    Args:
        folder: Where to, as `0.parquet` and `1.parquet`, in which the column is an array of such.
        mark: That file.
    """
    pickled = base64.b64encode(pickle.dumps(_Runs(mark))).decode()
    column = {"type": "udt", "pyClass": "pickle.NoSuch", "serializedClass": pickled, "sqlType": "string"}
    kinds = (column, {"type": "array", "elementType": column, "containsNull": True})
    written = []
    for number, (kind, values) in enumerate(zip(kinds, (pa.array(["v"]), pa.array([["v"]])), strict=True)):
        fields = [
            {"name": "path", "type": "string", "nullable": True, "metadata": {}},
            {"name": "x", "type": kind, "nullable": True, "metadata": {}},
        ]
        row = json.dumps({"type": "struct", "fields": fields})
        table = pa.table({"path": ["1.png"], "x": values})
        table = table.replace_schema_metadata({"org.apache.spark.sql.parquet.row.metadata": row})
        written.append(folder / f"{number}.parquet")
        pq.write_table(table, written[-1])
    return written


if __name__ == "__main__":
    main(*sys.argv[1:])
