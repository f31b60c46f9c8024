"""Turn the bytes of an image file into upright RGB pixels of one size, or say why that cannot be done.

The only door of Pillow, of libspng by way of imagecodecs, which decodes a plain PNG in little more than half of
Pillow's time, and of libjpeg-turbo by way of simplejpeg, which says where data are missing; both give Pillow's
pixels. A file is recognised by its first bytes, and only the one decoder that they name is tried on it. Whatever
Pillow raises becomes an `ImageError` with one of `schema.REJECT_REASONS`; a picture that failed is never loaded a
second time, because a second `load` often succeeds with a partly empty picture.

A picture is decoded whole or not at all. Decoders do not promise that: where pixel data end properly but early,
Pillow leaves the rest of the picture empty without a word. So the modules of this package first look at the bytes
themselves. They refuse a file that lacks a part, or that would make its decoder work or allocate without bound, and
they hand on no more of it than the picture depends on: metadata that are not used decide nothing, whatever is wrong
with them.

Every picture ends as three channels of 8 bits over black: black is what the `pad` policy adds and what segmented
plants stand on, and premultiplied pixels *are* the picture over black, so that a transparent pixel's hidden colour
never bleeds into its neighbours. Colour profiles and gamma are not applied.

Limits hold before a decoder is started. With 64 million pixels and 64 MB, the defaults, no file takes more than 1.1
GB of memory besides its own bytes, or some three seconds of one core (2026, x86-64), whatever it holds: a WebP of as
many pixels takes most memory, deep greys and files of a million parts most time.

Importing this module changes four things in the process, once: Pillow's own pixel limit is switched off, as
`max_pixels` takes its place before any pixel is allocated; Pillow's warnings and log lines about odd files are
silenced; what libtiff says goes to `libtiff.messages` and not to standard error; and Pillow keeps up to 48 MB of the
memory of its last pictures for the next ones, for which the system would else have to find and clear each page. So
nothing stops or litters a job. Nothing else is global; all functions may be called from many threads.
"""

import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image

from seedlings_spark.choices import ASPECTS, FORMATS, MAX_PIXELS
from seedlings_spark.errors import ImageError
from seedlings_spark.images import bmp, gif, jpeg, libtiff, png, tiff

Pixels = npt.NDArray[np.uint8]
Rectangle = tuple[float, float, float, float]  # left, upper, right, lower, in pixels

_JPEG_SIGNATURE = b"\xff\xd8\xff"
_TIFF_SIGNATURES = (b"MM\0*", b"II*\0", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")
# Registered with Pillow, but data, film or a page rather than a picture.
_NO_PICTURES = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})
# Known by so little that others are asked first, in this order.
_WEAK_SIGNATURES = ("TGA", "CUR", "GBR")
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# A progressive JPEG costs one pass over all its coefficients for each scan, and an empty scan is ten bytes.
# Real ones have about ten scans.
_MAX_SCANS = 20
# Pillow reads the parts of a PNG or a JPEG one by one in Python, where they are padding even byte by byte, and keeps
# many: a file of 64 MB can so take a minute, or 2.4 GB. A million reads take a second; a real file of that length
# has some ten thousand parts.
_MAX_READS = 1_000_000
# Pixels of a PNG up to so many bytes are inflated before libspng sees them, which takes a copy of them: libdeflate is
# twice as fast as the zlib that libspng has.
_INFLATED_BYTES = 8 * 1024 * 1024
# Largest values that mean white in files that do not say; see `_deep_to_grey`.
_INTEGER_WHITES = (255.0, 65535.0, 4294967295.0)
_FLOAT_WHITES = (1.0, *_INTEGER_WHITES)
_WHITE_IS_ZERO = 0  # of TIFF's photometric interpretations
_ROWS_AT_ONCE = 1 << 22  # pixels of a deep picture converted at once: bounds the floats in memory to 64 MB
_DETAIL_LENGTH = 200
_JPEG_BLOCK = 8
_EXTRANEOUS = re.compile("extraneous bytes")
# What libjpeg and libtiff say where pixels are missing.
_PREMATURE = re.compile("premature e|not enough data|read error|got [0-9]+ bytes, expected", re.IGNORECASE)
# EXIF 2.3, tag 0x0112: how a picture is to be turned to stand upright.
_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.MAX_IMAGE_PIXELS = None
Image.core.set_blocks_max(3)  # type: ignore[attr-defined]
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").propagate = False  # and without this, errors go to standard error where nobody logs
logging.getLogger("PIL").addHandler(logging.NullHandler())
Image.init()  # now, so that no two threads register plugins at the same time


def decode(
    content: bytes,
    size: tuple[int, int],
    *,
    aspect: str = "crop",
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Decode a picture to upright RGB pixels of one size.

    The same bytes give the same pixels on every machine with the same version of Pillow. All eight
    orientations of one losslessly stored picture give the same pixels too.

    Shrinking averages with a triangle filter as wide as the reduction (Pillow's BILINEAR): it uses every
    pixel, keeps mirror images mirror images, and does not overshoot at the edges of leaves as LANCZOS and
    BICUBIC do. Large JPEGs are first shrunk by 2, 4 or 8 while they are decoded, to no less than twice the
    size needed. The result then differs from a full decode by up to 1.1 levels in the mean and 8 at most on
    photographs of plants, by up to 2.2 and 11 on pure noise; `test_images.py` holds the latter.

    16-bit grey is divided by 257. Integers of 32 bits and floats do not say what is white: the smallest of
    1 (floats only), 255, 65535 and 2**32 - 1 that no pixel exceeds is taken; negative values and NaN are
    black.

    Not promised: that damage is noticed where the format has no checksum. A JPEG with a flipped bit may
    decode silently to other pixels, a fax in a TIFF may end early, and zeros where a WebP's or a raw picture's data
    were are pixels too. PNG data are checked, which Pillow itself does not do.

    Args:
        content: A whole image file.
        size: (height, width) of the result in pixels, each at least 1.
        aspect: One of `ASPECTS`: what to do when the picture has another shape than `size`.
        formats: Accepted formats, a subset of `FORMATS`.
        max_pixels: Most pixels (height x width) that a picture may have, checked before it is decoded.

    Returns:
        uint8 array of shape (height, width, 3), C-contiguous, values 0 to 255.

    Raises:
        ImageError: The file is `empty`, `truncated`, `not_an_image`, of an `unsupported_format`,
            `too_large` or `corrupt`.
        ValueError: The size, the aspect policy or a format's name makes no sense.
    """
    height, width = size
    if height < 1 or width < 1 or max_pixels < 1:
        raise ValueError(f"size {size} and max_pixels {max_pixels}: expected numbers of at least 1")
    _check_known("aspect", aspect, ASPECTS)
    for accepted in formats:
        _check_known("format", accepted, FORMATS)

    content = bytes(content)
    name = _recognise(content, formats)
    try:
        return _decode_as(name, content, (height, width), aspect, max_pixels)
    except ImageError:
        raise
    except Exception as error:
        # Raised below, outside of this block: a chained error would keep the half-decoded picture alive.
        rejection = _rejection(error, name, content)
    raise rejection


def encode_png(pixels: Pixels) -> bytes:
    """Encode pixels as a PNG file whose bytes depend on nothing but the pixels.

    The data are stored, not compressed: what a compressor makes of them differs between zlib and its
    replacements, and with it the content hash and the split of a drawn picture would differ between
    machines. The file is as large as its pixels.

    Args:
        pixels: uint8 array of shape (height, width) for grey, (height, width, 3) for RGB or
            (height, width, 4) for RGBA.

    Returns:
        A whole PNG file.

    Raises:
        ValueError: Another shape or type.
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    colour_type = {1: 0, 3: 2, 4: 6}.get(channels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or colour_type is None or pixels.size == 0:
        raise ValueError(
            f"pixels of type {pixels.dtype} and shape {pixels.shape}: expected uint8 of shape "
            "(height, width), (height, width, 3) or (height, width, 4)"
        )
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, width * channels)
    return b"".join(
        (
            png.SIGNATURE,
            png.chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)),
            png.chunk(b"IDAT", _stored(rows.tobytes())),
            png.chunk(b"IEND", b""),
        )
    )


def compressed_png(pixels: Pixels) -> bytes:
    """Encode pixels as a PNG file for a person or a program to look at; its bytes depend on the compressor's version.

    Args:
        pixels: uint8 array of shape (height, width, 3), RGB.
    """
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def thumbnail(pixels: Pixels, longest: int) -> bytes:
    """A small JPEG of a picture, for a person to look at.

    Args:
        pixels: uint8 array of shape (height, width, 3), RGB.
        longest: Length of its longer side at most, in pixels; a smaller picture stays as it is.
    """
    height, width = pixels.shape[:2]
    share = min(1.0, longest / max(height, width))
    if share < 1:
        size = (max(1, round(width * share)), max(1, round(height * share)))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85)
    return content


def _check_known(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")


# --- what is it -----------------------------------------------------------------------------------------


def _recognise(content: bytes, formats: Sequence[str]) -> str:
    """Return the format that the first bytes announce, if it is an accepted one."""
    if not content:
        raise ImageError("empty", "the file has no bytes")
    if png.SIGNATURE.startswith(content) or _JPEG_SIGNATURE.startswith(content):
        raise ImageError("truncated", f"the file ends after {len(content)} bytes")
    name = _announced(content)
    if name is None:
        other = _other_format(content)
        if other is None:
            raise ImageError("not_an_image", "the first bytes are of no known image format")
        raise ImageError("unsupported_format", other)
    if name not in formats:
        raise ImageError("unsupported_format", name)
    return name


def _announced(content: bytes) -> str | None:
    """Return the one of `FORMATS` that the first bytes announce."""
    if content.startswith(png.SIGNATURE[:4]):  # the rest of it tells a file spoilt by a text-mode transfer
        return "png"
    if content.startswith(_JPEG_SIGNATURE):
        return "jpeg"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if content.startswith(_TIFF_SIGNATURES):
        return "tiff"
    if content.startswith(b"BM"):
        return "bmp"
    return None


def _other_format(content: bytes) -> str | None:
    """Name the format of a picture that is not one of `FORMATS`.

    Only looks at first bytes: no other decoder is ever started on a stranger's file, except that of TGA,
    which has no signature, for its header of 18 bytes.
    """
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        return "heif"
    known = [name for name in Image.OPEN if name.lower() not in FORMATS and name not in _NO_PICTURES]
    strong = [name for name in known if name not in _WEAK_SIGNATURES]
    for name in (*strong, *_WEAK_SIGNATURES):
        if name in known and _pillow_accepts(name, content):
            return name.lower()
    return None


def _pillow_accepts(name: str, content: bytes) -> bool:
    accepts = Image.OPEN[name][1]
    try:
        if accepts is not None:
            return bool(accepts(content[:16]))
        if name == "TGA":
            Image.open(io.BytesIO(content), formats=(name,))
            return True
    except Exception:  # among them an `accept` that expects more bytes than there are
        return False
    return False


# --- the decoding ---------------------------------------------------------------------------------------


def _decode_as(name: str, content: bytes, size: tuple[int, int], aspect: str, max_pixels: int) -> Pixels:
    """Decode a picture of a known format; raises whatever Pillow raises."""
    if name == "jpeg":
        found = jpeg.essence(content)
        picture = _opened_jpeg(found, max_pixels)
        orientation = _orientation(picture)
        stored = _draft(picture, size if orientation < 5 else (size[1], size[0]), aspect)
        picture, transparent = _load_jpeg(picture, found), None
    else:
        picture, transparent = _OPENERS[name](content, max_pixels)
        orientation = _orientation(picture)  # TIFF has turned itself by now
        stored = (float(picture.width), float(picture.height))
    used = _turned_rectangle(picture.size, stored, orientation)
    picture = _to_eight_bits(picture, transparent)
    if orientation in _TRANSPOSITIONS:  # the whole picture, so that the eight orientations agree to the bit
        picture = picture.transpose(_TRANSPOSITIONS[orientation])
    return _fit(picture, used, size, aspect)


def _opened(name: str, content: bytes, max_pixels: int) -> Image.Image:
    """Let the one plugin of Pillow open a file; what it raises says more than `Image.open` does, which tries many."""
    plugin: Any = Image.OPEN[name.upper()][0]
    picture: Image.Image = plugin(_MeteredStream(content), "")
    _check_pixels(picture.size, max_pixels)
    return picture


def _opened_jpeg(found: jpeg.Essence, max_pixels: int) -> Image.Image:
    try:
        picture = _opened("jpeg", found.content, max_pixels)
    except SyntaxError as error:
        if found.kind is None:
            raise
        detail = f"{found.kind}: {_words(error)}"
    else:
        pixels = picture.width * picture.height
        if found.num_scans * pixels > _MAX_SCANS * max_pixels:
            what = f"{found.num_scans} scans of {picture.height} x {picture.width} pixels"
            raise ImageError("too_large", what)
        return picture
    raise ImageError("unsupported_format", detail[:_DETAIL_LENGTH])


def _load_jpeg(picture: Image.Image, found: jpeg.Essence) -> Image.Image:
    """Decode a JPEG with libjpeg-turbo, which says what Pillow does not let it say: that data are missing.

    The pixels are Pillow's, which has the same library. What it cannot do goes to Pillow: unusual ratios of brightness
    and colour.
    """
    words = ""
    try:
        return _by_turbojpeg(picture, found.content)
    except ValueError as error:
        words = " ".join(str(error).split())
    if _EXTRANEOUS.search(words):
        # Padding that some cameras write, or pixels that were overwritten: without it, pixels would be missing.
        last = found.content[:-2].rstrip(b"\0")
        last += b"\0" if last.endswith(b"\xff") else b""
        try:
            simplejpeg.decode_jpeg(last + b"\xff\xd9")
        except ValueError as error:
            words = " ".join(str(error).split())
    if _PREMATURE.search(words):
        raise ImageError("truncated", words[:_DETAIL_LENGTH])
    if words.startswith("Corrupt JPEG data") and not _EXTRANEOUS.search(words):
        raise ImageError("corrupt", words[:_DETAIL_LENGTH])
    try:
        picture.load()
    except OSError as error:
        if found.kind is None:
            raise OSError(words) from error
        detail = f"{found.kind}: {words}"
    else:
        return picture
    raise ImageError("unsupported_format", detail[:_DETAIL_LENGTH])


def _by_turbojpeg(picture: Image.Image, content: bytes) -> Image.Image:
    colours, mode, raw_mode = {
        "L": ("GRAY", "L", "L"),
        "RGB": ("RGBX", "RGBX", "RGBX"),  # as Pillow stores it
        "CMYK": ("CMYK", "CMYK", "CMYK;I"),
    }[picture.mode]
    height, width = picture.height, picture.width
    scale = getattr(picture, "decoderconfig", ())[:1]  # by which `draft` has told it to reduce
    if scale > (1,):
        # The smallest of its sizes that are as large, of which the next lower one is an eighth of the whole away.
        if max(height, width) < 2 * _JPEG_BLOCK:
            simplejpeg.decode_jpeg(content, colours)
            picture.load()
            return picture
        pixels = simplejpeg.decode_jpeg(content, colours, min_height=height, min_width=width)
    else:
        pixels = simplejpeg.decode_jpeg(content, colours)
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"{pixels.shape[:2]} pixels for {(height, width)}")
    decoded = Image.frombuffer(mode, (width, height), pixels, "raw", raw_mode, 0, 1)
    decoded.info = picture.info
    return decoded


def _png(content: bytes, max_pixels: int) -> tuple[Any, Any]:
    content, is_plain = png.essence(content)
    opened = _opened("png", content, max_pixels)
    transparent = _transparent_value(opened, content)
    picture = (_load_png(content, opened) if is_plain else None) or _load_whole(
        opened, lambda: _opened("png", content, max_pixels)
    )
    return picture, transparent


def _gif(content: bytes, max_pixels: int) -> tuple[Any, Any]:
    frame = gif.first_frame(content)
    _check_pixels(frame.canvas, max_pixels)
    picture = _opened("gif", frame.content, max_pixels)
    picture = _load_whole(picture, lambda: _opened("gif", frame.content, max_pixels))
    if frame.size != frame.canvas:
        canvas = Image.new(picture.mode, frame.canvas, frame.transparent or 0)
        if picture.palette is not None:
            canvas.putpalette(picture.palette)
        canvas.paste(picture, frame.place)
        picture = canvas
    if frame.transparent is not None:
        picture.info["transparency"] = frame.transparent
    return picture, None


def _tiff(content: bytes, max_pixels: int) -> tuple[Any, Any]:
    content, compression = tiff.essence(content, max_pixels)
    try:
        picture = _opened("tiff", content, max_pixels)
    except (
        SyntaxError
    ) as error:  # what Pillow raises where the parts fit together, but it does not know the kind
        detail = f"a TIFF of compression {compression}: {_words(error)}"
    else:
        return _load_tiff(picture), None
    raise ImageError("unsupported_format", detail[:_DETAIL_LENGTH])


def _load_tiff(picture: Image.Image) -> Image.Image:
    """Decode a TIFF, and refuse what libtiff has an error to tell of, or pixels to miss, though it gives some."""
    with libtiff.messages() as said:
        try:
            picture.load()
        except Exception:
            if not said:
                raise
    if any("not configured" in message for message in said):
        raise ImageError("unsupported_format", said[0][:_DETAIL_LENGTH])
    for message in said.errors or [message for message in said if _PREMATURE.search(message)]:
        reason = "truncated" if _PREMATURE.search(message) else "corrupt"
        raise ImageError(reason, message[:_DETAIL_LENGTH])
    return picture


def _bmp(content: bytes, max_pixels: int) -> tuple[Any, Any]:
    header = bmp.read_header(content)
    _check_pixels(header.size, max_pixels)
    if header.depth <= 8:
        picture = Image.fromarray(bmp.indices(content, header), "P")
        picture.putpalette(header.palette.tobytes())
        return picture, None
    try:
        picture = _opened("bmp", content, max_pixels)
    except OSError as error:  # of a header that we know, masks of colours that Pillow does not
        raise ImageError(
            "unsupported_format", f"a BMP of {header.depth} bits a pixel: {_words(error)}"
        ) from None
    picture.load()
    return picture, None


def _webp(content: bytes, max_pixels: int) -> tuple[Any, Any]:
    _check_pixels(_webp_size(content), max_pixels)  # its decoder allocates the canvas while it is opened
    picture = _opened("webp", content, max_pixels)
    picture.load()
    return picture, None


_OPENERS = {"png": _png, "gif": _gif, "tiff": _tiff, "bmp": _bmp, "webp": _webp}


def _load_whole(picture: Image.Image, again: Callable[[], Image.Image]) -> Image.Image:
    """Decode a PNG or GIF, and refuse it where the decoder stops before its last row without a word.

    The rows that are decoded last are the lowest two, whether they are interlaced or not. They are looked at for the
    value that the picture was filled with. Where a row has nothing else, the picture is decoded once more, over
    another value.
    """
    grounds = (255, 0) if picture.mode == "1" else (0xA5, 0x5A)
    lowest = _loaded_over(picture, grounds[0])
    if any(len(row) and (row == grounds[0]).all() for row in lowest):
        other = _loaded_over(again(), grounds[1])
        if not np.array_equal(lowest, other):
            raise ImageError("truncated", "the pixel data end before the last row of the picture")
    return picture


def _loaded_over(picture: Image.Image, ground: int) -> npt.NDArray[Any]:
    """Decode a picture over pixels of one value in all channels, and return its two lowest rows."""
    bands = len(Image.getmodebands(picture.mode) * [0])
    wide = picture.mode.startswith("I")
    value: Any = ground << 8 | ground if wide else (ground,) * bands if bands > 1 else ground
    picture.im = Image.core.fill(  # type: ignore[attr-defined]
        picture.mode, picture.size, value
    )
    picture.load()
    rows = picture.crop((0, max(0, picture.height - 2), picture.width, picture.height))
    found = np.asarray(rows.convert("L") if picture.mode == "1" else rows)
    if wide:
        found = (found & 0xFF).astype(np.uint8)
    return found


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError("too_large", f"{height} x {width} pixels, more than the {max_pixels} allowed")


def _webp_size(content: bytes) -> tuple[int, int]:
    """Return (width, height) of a WebP file's canvas, (0, 0) if its header is damaged.

    The layouts are those of RFC 9649, sections 2.5 to 2.7.
    """
    kind, head = content[12:16], content[20:30]
    if len(head) < 10:
        return 0, 0
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


class _MeteredStream(io.BytesIO):
    """A file in memory that may be read so often and no more."""

    num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.num_reads += 1
        if self.num_reads > _MAX_READS:
            raise ImageError("too_large", f"the picture is in more than {_MAX_READS:,} parts")
        return super().read(size)


def _load_png(content: bytes, opened: Image.Image) -> Image.Image | None:
    """Decode a plain PNG with libspng; None where it, or Pillow's word on the header, leaves a doubt."""
    shape = (opened.height, opened.width, len(opened.mode))
    num_bytes = opened.height * (1 + opened.width * len(opened.mode))
    try:
        if num_bytes <= _INFLATED_BYTES:
            compressed = png.pixel_data(content)
            rows = bytes(imagecodecs.deflate_decode(compressed, out=num_bytes))
            if len(rows) == num_bytes:
                content = png.stored(content, rows, compressed)
        pixels = imagecodecs.spng_decode(content)
    except Exception:  # what is wrong with the file is for Pillow to say
        return None
    if pixels.dtype != np.uint8 or pixels.shape != (shape if shape[2] > 1 else shape[:2]):
        return None
    picture = Image.frombuffer(opened.mode, opened.size, pixels, "raw", opened.mode, 0, 1)
    picture.info = opened.info
    return picture


def _orientation(picture: Image.Image) -> int:
    """Return how a picture is to be turned, 1 to 8; 1, as it is, if it does not say clearly."""
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata do not spoil a picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def _draft(picture: Image.Image, size: tuple[int, int], aspect: str) -> tuple[float, float]:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8 where that leaves twice the pixels that are needed.

    Returns:
        (width, height) that the picture then has. Not whole numbers: the last column and row of a shrunk
        picture may lie partly beyond its edge.
    """
    whole = (0.0, 0.0, float(picture.width), float(picture.height))
    left, upper, right, lower = _source(whole, size, aspect)
    width, height = _inner(whole, size, aspect)
    needed = (
        max(1, math.ceil(2 * width * picture.width / (right - left))),
        max(1, math.ceil(2 * height * picture.height / (lower - upper))),
    )
    drafted = picture.draft(None, needed)
    return whole[2:] if drafted is None else drafted[1][2:]


def _turned_rectangle(size: tuple[int, int], stored: tuple[float, float], orientation: int) -> Rectangle:
    """Return where the picture lies in its turned pixels, given the (width, height) of both as stored."""
    width, height = stored
    beyond_x, beyond_y = size[0] - width, size[1] - height
    if orientation >= 5:
        width, height, beyond_x, beyond_y = height, width, beyond_y, beyond_x
    left = beyond_x if orientation in (2, 3, 6, 7) else 0.0
    upper = beyond_y if orientation in (3, 4, 7, 8) else 0.0
    return left, upper, left + width, upper + height


# --- the colours ----------------------------------------------------------------------------------------


def _transparent_value(picture: Image.Image, content: bytes) -> int | tuple[int, ...] | None:
    """Return the value of grey or RGB pixels that a PNG declares transparent, as Pillow stores pixels.

    Pillow hands over the file's value, in the file's bit depth; it stores 1, 2 and 4 bits as 8, and 16-bit
    RGB as its upper 8.
    """
    declared = picture.info.get("transparency")
    if picture.format != "PNG" or picture.mode not in ("L", "RGB") or len(content) < 25:
        return None
    depth = content[24]
    if isinstance(declared, tuple):
        return tuple(value >> 8 for value in declared) if depth == 16 else declared
    if isinstance(declared, int):
        return declared * 255 // ((1 << depth) - 1) if depth < 8 else declared
    return None


def _to_eight_bits(picture: Image.Image, transparent: int | tuple[int, ...] | None) -> Image.Image:
    """Convert to L, RGB, La or RGBa: 8 bits a channel, colours multiplied by alpha where there is any."""
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        return _deep_to_grey(picture)
    if mode in ("L", "RGB", "La", "RGBa") and "transparency" not in picture.info:
        return picture
    if mode in ("LA", "RGBA"):
        return picture.convert(mode[:-1] + "a")
    if picture.has_transparency_data:
        if transparent is not None:
            picture.info["transparency"] = transparent
        return picture.convert("RGBA").convert("RGBa")
    return picture.convert("L" if mode == "1" else "RGB")


def _deep_to_grey(picture: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float pixels to 8 bits. Pillow's own conversion clips them at 255."""
    values = np.asarray(picture)
    tags = getattr(picture, "tag_v2", {})
    bits, signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
    if picture.mode == "I" and not signed:
        values = values.view(np.uint32)
    if picture.mode.startswith("I;16") or (bits == 16 and not signed):
        white = 65535.0
    elif picture.mode == "I" and bits == 16:
        white = 32767.0
    else:
        white = _white(values)

    grey = np.empty(values.shape, np.uint8)
    step = max(1, _ROWS_AT_ONCE // values.shape[1])
    for first in range(0, values.shape[0], step):
        rows = np.nan_to_num(values[first : first + step].astype(np.float64), nan=0.0)
        np.clip(rows / white, 0.0, 1.0, out=rows)
        grey[first : first + step] = np.floor(rows * 255.0 + 0.5)
    declared = picture.info.get("transparency")
    if isinstance(declared, int):
        grey[values == declared] = 0
    if tags.get(tiff.PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow turns for fewer bits only
        np.subtract(255, grey, out=grey)
    return Image.fromarray(grey)


def _white(values: npt.NDArray[Any]) -> float:
    """Return the smallest customary white that no finite pixel exceeds."""
    whole = values.dtype.kind in "iu"
    largest = float(values.max() if whole else np.max(values, where=np.isfinite(values), initial=0.0))
    return next(
        (white for white in (_INTEGER_WHITES if whole else _FLOAT_WHITES) if largest <= white), largest
    )


# --- the size -------------------------------------------------------------------------------------------


def _source(picture: Rectangle, size: tuple[int, int], aspect: str) -> Rectangle:
    """Return the part of the picture that is used."""
    if aspect != "crop":
        return picture
    left, upper, right, lower = picture
    width, height = right - left, lower - upper
    cropped_width = min(width, height * size[1] / size[0])
    cropped_height = min(height, width * size[0] / size[1])
    left += (width - cropped_width) / 2
    upper += (height - cropped_height) / 2
    return left, upper, left + cropped_width, upper + cropped_height


def _inner(picture: Rectangle, size: tuple[int, int], aspect: str) -> tuple[int, int]:
    """Return (width, height) of what the picture fills of the target."""
    height, width = size
    if aspect != "pad":
        return width, height
    scale = min(width / (picture[2] - picture[0]), height / (picture[3] - picture[1]))
    return (
        max(1, min(width, math.floor((picture[2] - picture[0]) * scale + 0.5))),
        max(1, min(height, math.floor((picture[3] - picture[1]) * scale + 0.5))),
    )


def _fit(picture: Image.Image, used: Rectangle, size: tuple[int, int], aspect: str) -> Pixels:
    """Resample a picture to the target size."""
    height, width = size
    inner = _inner(used, size, aspect)
    left, upper, right, lower = _source(used, size, aspect)
    # The filter reaches beyond the rectangle's edges into the rest of the picture, as it does inside of it.
    # A rounding error must not push the rectangle itself out of the picture, which Pillow refuses.
    box = (max(left, 0.0), max(upper, 0.0), min(right, picture.width), min(lower, picture.height))
    fitted = np.asarray(picture.resize(inner, Image.Resampling.BILINEAR, box=box))
    channels = fitted[:, :, None] if fitted.ndim == 2 else fitted

    pixels = np.zeros((height, width, 3), np.uint8)
    x, y = (width - inner[0]) // 2, (height - inner[1]) // 2
    pixels[y : y + inner[1], x : x + inner[0]] = channels[:, :, : 3 if channels.shape[2] >= 3 else 1]
    return pixels


# --- what went wrong ------------------------------------------------------------------------------------


def _rejection(error: Exception, name: str, content: bytes) -> ImageError:
    """Say in our words what an exception of Pillow means for a file of a known format."""
    detail = _words(error)[:_DETAIL_LENGTH]
    if isinstance(error, MemoryError | Image.DecompressionBombError) or "too large" in detail:
        return ImageError("too_large", detail)
    if _ends_early(name, content) or "truncat" in detail.lower():
        return ImageError("truncated", detail)
    return ImageError("corrupt", detail)


def _words(error: BaseException) -> str:
    """What an exception and those that it came from say: Pillow wraps what its plugins raise."""
    said: dict[str, str] = {}
    current: BaseException | None = error
    while current is not None:
        text, kind = " ".join(str(current).split()), type(current).__name__
        said.setdefault(text, f"{kind}: {text}" if text else kind)
        current = current.__cause__ or current.__context__
    return ", from ".join(said.values())


def _ends_early(name: str, content: bytes) -> bool:
    """Tell whether a file that could not be decoded lacks its end."""
    if name == "png":
        return not png.has_end(content)
    if name == "webp":
        return len(content) < 12 or int.from_bytes(content[4:8], "little") + 8 > len(content)
    return False


# --- writing PNG ----------------------------------------------------------------------------------------


def _stored(data: bytes) -> bytes:
    return b"".join(png.stored_stream(data, struct.pack(">I", zlib.adler32(data))))
