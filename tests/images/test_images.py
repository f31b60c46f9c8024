import functools
import io
import struct
import tarfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from seedlings_spark import images, schema
from seedlings_spark.errors import ImageError
from tests.hostile import STORED_FOR

# pytest undoes the filter that importing `images` sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

DATA = Path(__file__).parents[3] / "shared" / "data"

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
# Upright, 2 high and 3 wide, without any symmetry.
SIX = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, (90, 60, 30)]], np.uint8)


def encoded(pixels, format_, mode=None, **options):
    stream = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    (picture.convert(mode) if mode else picture).save(stream, format_, **options)
    return stream.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def smooth_picture(height, width):
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / (width - 1)
    green = 255 * y / (height - 1)
    blue = 127 + 120 * np.sin(x / 40) * np.cos(y / 30)
    return np.stack([red, green, blue], -1).round().astype(np.uint8)


def chunk(kind, data, checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(width, height, depth, colour, rows, extra=b"", **of_idat):
    """A PNG made by hand: `rows` are the unfiltered bytes of each row."""
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + extra
        + chunk(b"IDAT", data, **of_idat)
        + chunk(b"IEND", b"")
    )


def reason(content, size=(8, 8), **options):
    with pytest.raises(ImageError) as caught:
        images.decode(content, size, **options)
    assert caught.value.reason in schema.REJECT_REASONS
    return caught.value.reason


def as_it_is(content):
    """Decode to the size that the picture has."""
    with Image.open(io.BytesIO(content)) as picture:
        width, height = picture.size
    return images.decode(content, (height, width))


def a_file_of_each_format():
    pixels = smooth_picture(24, 31)
    return {
        "png": encoded(pixels, "PNG"),
        "jpeg": encoded(pixels, "JPEG"),
        "webp": encoded(pixels, "WEBP"),
        "bmp": encoded(pixels, "BMP"),
        "tiff": encoded(pixels, "TIFF"),
        "gif": encoded(pixels, "GIF"),
    }


VARIANTS = {
    **a_file_of_each_format(),
    "progressive jpeg": encoded(smooth_picture(24, 31), "JPEG", progressive=True),
    "lossless webp": encoded(smooth_picture(24, 31), "WEBP", lossless=True),
    "compressed tiff": encoded(smooth_picture(24, 31), "TIFF", compression="tiff_lzw"),
    "16-bit png": encoded(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100, "PNG"),
    "palette png": encoded(smooth_picture(24, 31), "PNG", mode="P"),
}


# --- files that are no good -----------------------------------------------------------------------------


def test_a_file_without_bytes_is_empty():
    assert reason(b"") == "empty"


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"\0" * 4096,
        b"<html><body>404 not found</body></html>",
        b'{"error": "no such file"}',
        "Löwenzahn, erste Aufnahme\n".encode(),
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"%PDF-1.7\n",
        b"PK\x03\x04" + b"\0" * 60,
    ],
)
def test_what_is_no_picture_is_called_so(content):
    assert reason(content) == "not_an_image"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (encoded(SIX, "PPM"), "ppm"),
        (encoded(SIX, "TGA"), "tga"),
        (encoded(SIX, "PCX"), "pcx"),
        (b"8BPS\0\1" + b"\0" * 40, "psd"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heif"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 20, "jpeg2000"),
    ],
)
def test_a_picture_of_a_format_nobody_asked_for_is_named(content, name):
    with pytest.raises(ImageError) as caught:
        images.decode(content, (8, 8))
    assert (caught.value.reason, caught.value.detail) == ("unsupported_format", name)


@pytest.mark.parametrize("name", images.FORMATS)
def test_a_format_that_is_not_accepted_is_refused_and_the_others_are_not(name):
    content = a_file_of_each_format()[name]
    others = tuple(other for other in images.FORMATS if other != name)
    assert reason(content, formats=others) == "unsupported_format"
    assert images.decode(content, (8, 8), formats=(name,)).shape == (8, 8, 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_cut_anywhere_is_rejected_or_lacks_nothing(name):
    content = VARIANTS[name]
    whole = images.decode(content, (8, 8))
    for length in range(1, len(content), max(1, len(content) // 150)):
        try:
            pixels = images.decode(content[:length], (8, 8))
        except ImageError as error:
            assert error.reason in ("truncated", "not_an_image"), (length, str(error))
            assert error.reason == "truncated" or length < 12
        else:
            assert length > 0.5 * len(content)
            assert np.array_equal(pixels, whole)


def test_half_a_file_is_truncated_whatever_its_format():
    assert {
        name: reason(content[: len(content) // 2]) for name, content in VARIANTS.items()
    } == dict.fromkeys(VARIANTS, "truncated")


def test_pixel_data_with_a_wrong_checksum_are_corrupt():
    good = png(2, 1, 8, 0, [b"\x10\x20"])
    bad = png(2, 1, 8, 0, [b"\x10\x20"], checksum=12345)
    assert as_it_is(good)[0, :, 0].tolist() == [0x10, 0x20]
    assert reason(bad) == "corrupt"


# --- plain PNG files, which libspng decodes ---------------------------------------------------------------


def test_plain_png_files_are_not_decoded_by_pillow_and_others_are(monkeypatch):
    def load(picture):
        raise OSError("Pillow")

    text = chunk(b"tEXt", b"Software\0by hand")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    plain = png(2, 1, 8, 0, [b"\x10\x20"], extra=text)
    assert as_it_is(plain)[0, :, 0].tolist() == [0x10, 0x20]
    assert as_it_is(encoded(SIX, "PNG")).tolist() == SIX.tolist()
    # What says nothing about the pixels does not matter.
    for odd in (
        plain[:-12] + text + plain[-12:],
        plain[:-12],
        plain[:33] + chunk(b"IDAT", b"") * 1000 + plain[33:],
    ):
        assert as_it_is(odd)[0, :, 0].tolist() == [0x10, 0x20]
    assert as_it_is(encoded(SIX, "PNG", exif=exif(1))).tolist() == SIX.tolist()
    for unusual in (
        VARIANTS["palette png"],
        VARIANTS["16-bit png"],
        png(2, 1, 8, 0, [b"\x10\x20"], extra=chunk(b"tRNS", b"\0\x10")),
    ):
        with pytest.raises(ImageError, match="Pillow"):
            images.decode(unusual, (1, 2))


def a_png(generator):
    """A plain PNG by Pillow, noise or stripes, as its chunks."""
    height, width = generator.integers(1, 40, 2)
    channels = [(), (3,), (4,)][generator.integers(3)]
    pixels = generator.integers(0, 256, (height, width, *channels), dtype=np.uint8)
    if generator.random() < 0.5:  # other filters pay
        pixels = pixels // 64 + np.arange(height, dtype=np.uint8).reshape(-1, *[1] * (pixels.ndim - 1))
    content = encoded(pixels, "PNG", compress_level=int(generator.integers(10)))
    return [(kind, content[start:end]) for kind, start, end in images.png.chunks(content)]


def damaged(chunks, generator):
    """Something wrong with the data or the header of a PNG, under checksums that are right."""
    at = next(number for number, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    data = bytearray(chunks[at][1])
    place = int(generator.integers(len(data)))
    way = generator.integers(9)
    if way == 0:
        data[place] ^= 1 << generator.integers(8)
    elif way == 1:
        del data[place:]
    elif way == 2:
        data += generator.bytes(20)
    elif way == 3:
        data[-4:] = generator.bytes(4)  # zlib's own checksum
    elif way == 4:
        raw = zlib.decompress(data)
        data = zlib.compress(raw[: int(generator.integers(len(raw)))])
    elif way == 5:
        data = zlib.compress(zlib.decompress(data) + generator.bytes(30))
    elif way == 6:
        raw = zlib.decompress(data)
        data = zlib.compress(bytes([generator.integers(10)]) + raw[1:])  # the filter of the first row
    elif way == 7:
        header = bytearray(chunks[0][1])
        header[generator.choice([3, 7, 8, 9, 10, 11, 12])] = generator.choice([0, 1, 2, 3, 4, 6, 8, 16, 60])
        return [(b"IHDR", bytes(header)), *chunks[1:]]
    else:
        parts = [(b"IDAT", bytes(data[:place])), (b"IDAT", bytes(data[place:]))]
        return [*chunks[:at], *parts, *chunks[at + 1 :]]
    return [*chunks[:at], (b"IDAT", bytes(data)), *chunks[at + 1 :]]


def test_libspng_and_pillow_agree_on_whole_and_on_damaged_files(monkeypatch):
    def outcome(content):
        try:
            return images.decode(content, (8, 8)).tobytes()
        except ImageError as error:
            return error.reason

    generator = np.random.default_rng(20)
    contents = []
    for number in range(1500):
        chunks = a_png(generator)
        if number % 3:
            chunks = damaged(chunks, generator)
        contents.append(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))
    fast = [outcome(content) for content in contents]
    monkeypatch.setattr(images, "_load_png", lambda content, opened: None)
    assert fast == [outcome(content) for content in contents]
    assert sum(isinstance(each, bytes) for each in fast) > 500
    assert {"corrupt", "truncated"} <= {each for each in fast if isinstance(each, str)}


def test_a_png_spoilt_by_a_text_mode_transfer_is_corrupt():
    assert reason(encoded(SIX, "PNG").replace(b"\r\n", b"\n")) == "corrupt"


@pytest.mark.parametrize("name", VARIANTS)
def test_damage_never_raises_anything_but_image_error(name):
    content = VARIANTS[name]
    generator = np.random.default_rng([17, len(content)])
    for _ in range(150):
        damaged = bytearray(content)
        for at in generator.integers(0, len(content), generator.integers(1, 6)):
            # most of what can go wrong is in the header
            damaged[at if generator.random() < 0.5 else at % 64] = generator.integers(0, 256)
        try:
            pixels = images.decode(bytes(damaged), (8, 8), max_pixels=10_000_000)
        except ImageError as error:
            assert error.reason in schema.REJECT_REASONS
        else:
            assert pixels.shape == (8, 8, 3)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["", *sorted(VARIANTS)]))
def test_any_bytes_give_pixels_or_an_image_error(tail, name):
    try:
        pixels = images.decode((VARIANTS[name][:16] if name else b"") + tail, (4, 4))
    except ImageError as error:
        assert error.reason in schema.REJECT_REASONS
    else:
        assert pixels.shape == (4, 4, 3)


def test_a_failed_picture_is_not_loaded_again(monkeypatch):
    loads = []
    load = ImageFile.ImageFile.load

    def counted(picture):
        loads.append(picture)
        return load(picture)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    content = encoded(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8), "BMP")
    assert reason(content[: len(content) // 2]) == "truncated"
    assert len(loads) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError,
        ValueError,
        SyntaxError,
        NotImplementedError,
        struct.error,
        OverflowError,
        RecursionError,
        KeyError,
    ],
)
def test_whatever_the_decoder_raises_becomes_an_image_error(monkeypatch, error):
    def load(picture):
        raise error("broken on purpose")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert reason(encoded(SIX, "BMP")) == "corrupt"


def test_too_little_memory_for_one_picture_rejects_that_picture(monkeypatch):
    def load(picture):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert reason(encoded(SIX, "BMP")) == "too_large"


def test_a_rejection_does_not_keep_the_picture_alive_and_has_no_address_in_it():
    with pytest.raises(ImageError) as caught:
        images.decode(VARIANTS["png"][:30], (8, 8))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "0x" not in str(caught.value)


def test_arguments_that_make_no_sense_are_the_callers_mistake():
    content = VARIANTS["png"]
    for arguments in (
        {"size": (0, 8)},
        {"size": (8, 8), "aspect": "squash"},
        {"size": (8, 8), "formats": ("png", "docx")},
        {"size": (8, 8), "max_pixels": 0},
    ):
        with pytest.raises(ValueError, match="expected"):
            images.decode(content, **arguments)


# --- pictures that would not fit in memory --------------------------------------------------------------


def webp_header(width, height):
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_with_tiles(width, height):
    """8 x 8 pixels in one tile of width x height."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 5), (262, 1), (277, 1)]
    tags += [(322, width), (323, height), (324, 200), (325, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0"
    return directory.ljust(208, b"\0")


def gif_with_a_frame_beyond_its_screen(width, height, extension=b""):
    palette = bytes(6)
    cleared_before_the_next = b"\x21\xf9\x04\x08\0\0\0\0"
    return (
        b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + palette + cleared_before_the_next + extension
        + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    )  # fmt: skip


def jpeg_that_claims(width, height):
    content = encoded(SIX, "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def bmp_that_claims(width, height):
    content = encoded(SIX, "BMP")
    return content[:18] + struct.pack("<ii", width, height) + content[26:]


BOMBS = {
    "png": png(20_000, 20_000, 8, 2, [b"\0" * 100]),
    "png with alpha": png(65_535, 65_535, 8, 6, [b"\0" * 100]),
    "jpeg": jpeg_that_claims(20_000, 20_000),
    "webp": webp_header(16_000, 16_000),
    "bmp": bmp_that_claims(20_000, 20_000),
    "gif": gif_with_a_frame_beyond_its_screen(65_000, 65_000),
    "gif whose comment is empty": gif_with_a_frame_beyond_its_screen(65_000, 65_000, b"\x21\x01\0\x21\xfe\0"),
    "tiff": encoded(SIX, "TIFF").replace(
        struct.pack("<HHII", 256, 4, 1, 3), struct.pack("<HHII", 256, 4, 1, 1 << 30)
    ),
    "tiff tiles": tiff_with_tiles(1 << 16, 1 << 16),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header_before_pixels_are_allocated(name, monkeypatch):
    def load(picture):
        raise AssertionError("loaded")

    def new(*arguments):
        raise AssertionError("allocated")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    monkeypatch.setattr(Image.core, "new", new)
    monkeypatch.setattr(Image.core, "fill", new)
    started = time.perf_counter()
    assert reason(BOMBS[name]) == "too_large"
    assert time.perf_counter() - started < 0.5


def test_a_jpeg_of_a_thousand_scans_is_too_large():
    content = encoded(smooth_picture(300, 300), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2]
    many = content[:last] + scan * 1000 + content[-2:]
    assert reason(many, max_pixels=1_000_000) == "too_large"
    assert images.decode(content, (8, 8), max_pixels=90_000).shape == (8, 8, 3)


# --- upright --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", STORED_FOR)
@pytest.mark.parametrize(("format_", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_every_orientation_shows_the_same_pixels(format_, options, orientation):
    content = encoded(STORED_FOR[orientation](SIX), format_, exif=exif(orientation), **options)
    assert np.array_equal(images.decode(content, (2, 3)), SIX)


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("orientation", STORED_FOR)
def test_every_orientation_shrinks_to_the_same_bits(orientation, aspect):
    upright = np.random.default_rng(5).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    content = encoded(STORED_FOR[orientation](upright), "PNG", exif=exif(orientation))
    expected = images.decode(encoded(upright, "PNG"), (16, 12), aspect=aspect)
    assert np.array_equal(images.decode(content, (16, 12), aspect=aspect), expected)


UPRIGHT = smooth_picture(301, 403)  # no multiple of the 8, 16 or 32 pixels of a block


@functools.cache
def upright_png():
    return encoded(UPRIGHT, "PNG")


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("orientation", STORED_FOR)
def test_a_jpeg_shrunk_while_it_is_decoded_lies_where_it_should(orientation, aspect):
    content = encoded(STORED_FOR[orientation](UPRIGHT), "JPEG", quality=95, exif=exif(orientation))
    for size in ((20, 20), (20, 80)):
        expected = images.decode(upright_png(), size, aspect=aspect).astype(int)
        difference = np.abs(images.decode(content, size, aspect=aspect).astype(int) - expected)
        assert difference.mean() < 0.6
        assert difference.max() <= 4


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    assert np.array_equal(as_it_is(encoded(SIX, "PNG", exif=exif(orientation))), SIX)


def test_damaged_metadata_do_not_spoil_a_picture():
    content = encoded(SIX, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(as_it_is(content), SIX)


# --- colours --------------------------------------------------------------------------------------------


def test_transparent_pixels_are_black_whatever_colour_hides_in_them():
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 51], [200, 100, 50, 0]]], np.uint8)
    expected = [[200, 100, 50], [40, 20, 10], [0, 0, 0]]
    for format_, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert as_it_is(encoded(pixels, format_, **options))[0].tolist() == expected


def test_a_hidden_colour_does_not_bleed_into_its_neighbours():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, :2] = (0, 255, 0, 255)
    pixels[:, 2:] = (255, 255, 255, 0)
    shrunk = images.decode(encoded(pixels, "PNG"), (1, 1))
    assert shrunk[0, 0].tolist() == [0, 128, 0]


def test_grey_with_alpha_is_over_black():
    picture = Image.new("LA", (2, 1))
    picture.putdata([(200, 255), (200, 51)])
    assert as_it_is(encoded(picture, "PNG"))[0].tolist() == [[200] * 3, [40] * 3]


def test_palette_with_transparency():
    palette = chunk(b"PLTE", bytes([*RED, *GREEN, 200, 100, 50])) + chunk(b"tRNS", bytes([255, 0, 51]))
    content = png(3, 1, 8, 3, [b"\0\1\2"], extra=palette)
    assert as_it_is(content)[0].tolist() == [[255, 0, 0], [0, 0, 0], [40, 20, 10]]


def test_palette_without_transparency():
    content = png(3, 1, 8, 3, [b"\2\1\0"], extra=chunk(b"PLTE", bytes([*RED, *GREEN, *BLUE])))
    assert as_it_is(content)[0].tolist() == [list(BLUE), list(GREEN), list(RED)]


def test_gif_transparency_is_black():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*WHITE, *GREEN])
    picture.putdata([0, 1])
    assert as_it_is(encoded(picture, "GIF", transparency=0))[0].tolist() == [list(BLACK), list(GREEN)]


def test_one_transparent_colour_of_rgb():
    declared = chunk(b"tRNS", struct.pack(">HHH", 9, 8, 7))
    content = png(2, 1, 8, 2, [bytes([9, 8, 7, 9, 8, 6])], extra=declared)
    assert as_it_is(content)[0].tolist() == [[0, 0, 0], [9, 8, 6]]


def test_one_transparent_grey_of_four_bits():
    content = png(2, 1, 4, 0, [b"\xfe"], extra=chunk(b"tRNS", b"\0\x0f"))
    assert as_it_is(content)[0].tolist() == [[0, 0, 0], [238, 238, 238]]


def test_one_transparent_colour_of_sixteen_bit_rgb():
    colour = struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)
    content = png(2, 1, 16, 2, [colour + b"\xff" * 6], extra=chunk(b"tRNS", colour))
    assert as_it_is(content)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_one_transparent_grey_of_sixteen_bits():
    content = png(2, 1, 16, 0, [b"\xff\xff\x80\x80"], extra=chunk(b"tRNS", b"\xff\xff"))
    assert as_it_is(content)[0].tolist() == [[0, 0, 0], [128, 128, 128]]


def test_one_bit():
    content = png(8, 1, 1, 0, [b"\xa5"])
    assert as_it_is(content)[0, :, 0].tolist() == [255, 0, 255, 0, 0, 255, 0, 255]


def test_one_bit_shrinks_to_grey():
    assert images.decode(png(8, 1, 1, 0, [b"\xff"]), (1, 1)).tolist() == [[[255, 255, 255]]]
    assert images.decode(png(2, 2, 1, 0, [b"\x80", b"\x40"]), (1, 1), aspect="stretch")[0, 0, 0] == 128


def test_grey_becomes_three_equal_channels():
    pixels = as_it_is(png(3, 1, 8, 0, [b"\x00\x7f\xff"]))
    assert pixels[0].tolist() == [[0, 0, 0], [127, 127, 127], [255, 255, 255]]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = [0, 128, 129, 257, 300, 32768, 65535]
    expected = [0, 0, 1, 1, 1, 128, 255]
    pixels = np.array([values], np.uint16)
    big_endian = Image.frombytes("I;16B", (7, 1), pixels.astype(">u2").tobytes())
    for content in (encoded(pixels, "PNG"), encoded(pixels, "TIFF"), encoded(big_endian, "TIFF")):
        assert as_it_is(content)[0, :, 0].tolist() == expected


def test_sixteen_bit_colour_keeps_its_upper_bits():
    assert as_it_is(png(1, 1, 16, 2, [b"\x12\x34\x56\x78\x9a\xbc"]))[0, 0].tolist() == [0x12, 0x56, 0x9A]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 51, 255], [0, 51, 255]),
        ([0, 13107, 65535], [0, 51, 255]),
        ([-5, 0, 256], [0, 0, 1]),
        ([0, 1 << 30, (1 << 31) - 1], [0, 64, 127]),
    ],
)
def test_whole_numbers_of_32_bits_take_the_smallest_customary_white(values, expected):
    assert as_it_is(encoded(np.array([values], np.int32), "TIFF"))[0, :, 0].tolist() == expected


def test_unsigned_whole_numbers_of_32_bits_are_not_negative():
    signed = encoded(np.array([[0, 1 << 30, -(1 << 30)]], np.int32), "TIFF")
    unsigned = signed.replace(struct.pack("<HHIHH", 339, 3, 1, 2, 0), struct.pack("<HHIHH", 339, 3, 1, 1, 0))
    assert as_it_is(unsigned)[0, :, 0].tolist() == [0, 64, 191]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([0.0, 13107.0, 65535.0], [0, 51, 255]),
        ([-1.0, np.nan, 0.6], [0, 0, 153]),
        ([-np.inf, np.inf, 0.6], [0, 255, 153]),
        ([0.0, 1e12, 5e12], [0, 51, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
)
def test_floats_take_the_smallest_customary_white(values, expected):
    assert as_it_is(encoded(np.array([values], np.float32), "TIFF"))[0, :, 0].tolist() == expected


def solid(mode, colour):
    return Image.new(mode, (32, 32), colour)


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "expected"),
    [
        ((0, 0, 0, 0), WHITE),
        ((0, 0, 0, 255), BLACK),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 255, 0), RED),
    ],
)
def test_cmyk_is_ink_on_white_paper(format_, ink, expected):
    pixels = images.decode(encoded(solid("CMYK", ink), format_), (8, 8)).astype(int)
    assert np.abs(pixels - expected).max() <= 3


def test_ycbcr_and_lab():
    grey = images.decode(encoded(solid("YCbCr", (100, 128, 128)), "TIFF"), (8, 8))
    assert np.abs(grey.astype(int) - 100).max() <= 1
    white = images.decode(encoded(solid("LAB", (255, 128, 128)), "TIFF"), (8, 8))
    assert white.min() >= 254


def test_a_gif_with_comments_and_padding_is_the_same_picture():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*WHITE, *GREEN])
    picture.putdata([0, 1])
    content = encoded(picture, "GIF", transparency=0)
    frame = content.index(b",")
    odd = b"\x21\xfe\x03a,b\0" + b"\0\0" + b"\x21\xff\x0bXMP DataXMP\x01,\0" + b"\x21\x01\0"
    pixels = images.decode(content[:frame] + odd + content[frame:], (1, 2))
    assert pixels[0].tolist() == [list(BLACK), list(GREEN)]


@pytest.mark.parametrize(("format_", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_of_an_animation_the_first_frame_counts(format_, options):
    frames = [solid("RGB", RED), solid("RGB", GREEN)]
    content = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(images.decode(content, (4, 4)), np.full((4, 4, 3), RED))


# --- size and shape -------------------------------------------------------------------------------------

FOUR_COLUMNS = np.repeat(np.array([[[0], [70], [140], [210]]], np.uint8), 2, axis=0).repeat(3, axis=2)


def test_crop_takes_the_largest_centred_rectangle():
    pixels = images.decode(encoded(FOUR_COLUMNS, "PNG"), (2, 2), aspect="crop")
    assert pixels[:, :, 0].tolist() == [[70, 140], [70, 140]]
    upright = encoded(FOUR_COLUMNS.swapaxes(0, 1), "PNG")
    assert images.decode(upright, (2, 2), aspect="crop")[:, :, 0].tolist() == [[70, 70], [140, 140]]


def test_pad_shows_the_whole_picture_between_black_bars():
    pixels = images.decode(encoded(FOUR_COLUMNS + 10, "PNG"), (4, 4), aspect="pad")
    row = [10, 80, 150, 220]
    assert pixels[:, :, 0].tolist() == [[0] * 4, row, row, [0] * 4]
    upright = encoded(FOUR_COLUMNS.swapaxes(0, 1) + 10, "PNG")
    pixels = images.decode(upright, (4, 4), aspect="pad")
    assert pixels[:, :, 0].tolist() == [[0, value, value, 0] for value in row]


def test_stretch_squeezes_the_whole_picture():
    # The triangle filter from 4 to 2 weighs the four columns 3, 3, 1, 0 and 0, 1, 3, 3 sevenths.
    pixels = images.decode(encoded(FOUR_COLUMNS, "PNG"), (2, 2), aspect="stretch")
    assert pixels[:, :, 0].tolist() == [[50, 160], [50, 160]]


def test_crop_is_the_default():
    content = encoded(smooth_picture(20, 60), "PNG")
    assert np.array_equal(images.decode(content, (8, 8)), images.decode(content, (8, 8), aspect="crop"))


def triangle_weights(source, target):
    """(target, source) weights of an antialiased triangle filter, each row summing to 1."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    distances = np.abs(np.arange(source) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.clip(1.0 - distances, 0.0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (53, 67), (11, 200), (5, 7), (1, 1), (224, 224)])
def test_every_pixel_counts_when_a_picture_shrinks(height, width):
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.einsum(
        "ah,bw,hwc->abc", triangle_weights(height, 16), triangle_weights(width, 12), pixels.astype(float)
    )
    got = images.decode(encoded(pixels, "PNG"), (16, 12), aspect="stretch")
    assert np.abs(got - expected).max() <= 1.0


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize(("height", "width"), [(1, 30_000), (30_000, 1), (1, 1), (3, 1000)])
def test_extreme_shapes_are_pictures_too(height, width, aspect):
    content = encoded(np.full((height, width, 3), 200, np.uint8), "PNG")
    for size in ((64, 64), (1, 1), (7, 300)):
        pixels = images.decode(content, size, aspect=aspect)
        assert pixels.shape == (*size, 3)
        assert set(np.unique(pixels)) <= ({0, 200} if aspect == "pad" else {200})
        assert pixels.max() == 200


def test_the_result_is_plain_contiguous_and_its_own():
    for content in VARIANTS.values():
        pixels = images.decode(content, (5, 9))
        assert pixels.shape == (5, 9, 3)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable


# --- the same for everybody -----------------------------------------------------------------------------


def test_the_same_bytes_give_the_same_pixels_in_many_threads():
    contents = list(VARIANTS.values()) * 10
    one_by_one = [images.decode(content, (8, 8)) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda content: images.decode(content, (8, 8)), contents))
    assert all(np.array_equal(a, b) for a, b in zip(one_by_one, together, strict=True))


def test_bytes_of_any_type_do():
    content = VARIANTS["png"]
    expected = images.decode(content, (8, 8))
    assert np.array_equal(images.decode(bytearray(content), (8, 8)), expected)
    assert np.array_equal(images.decode(memoryview(content), (8, 8)), expected)


@pytest.mark.parametrize("side", [256, 500, 512, 1030])
def test_a_jpeg_shrunk_while_it_is_decoded_is_nearly_the_same_even_if_it_is_noise(side, monkeypatch):
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    content = encoded(noise, "JPEG", quality=90)
    shrunk = images.decode(content, (64, 64)).astype(int)
    monkeypatch.setattr(images, "_draft", lambda picture, *_: tuple(map(float, picture.size)))
    difference = np.abs(shrunk - images.decode(content, (64, 64)))
    assert 0 < difference.max() <= 14
    assert difference.mean() <= 2.5


def test_a_jpeg_lying_on_its_side_is_not_shrunk_too_far_while_it_is_decoded(monkeypatch):
    noise = np.random.default_rng(4).integers(0, 256, (160, 640, 3), dtype=np.uint8)  # upright 640 high
    content = encoded(noise, "JPEG", exif=exif(6))
    pixels = images.decode(content, (20, 80), aspect="stretch")
    monkeypatch.setattr(images, "_draft", lambda picture, *_: tuple(map(float, picture.size)))
    assert np.array_equal(pixels, images.decode(content, (20, 80), aspect="stretch"))


# --- writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (5, 7), (5, 7, 4), (150, 160, 3)])
def test_a_written_png_is_read_back_by_pillow(shape):
    pixels = np.random.default_rng(9).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(images.encode_png(pixels))) as picture:
        assert np.array_equal(np.asarray(picture), pixels)
        picture.close()
    with Image.open(io.BytesIO(images.encode_png(pixels))) as picture:
        picture.verify()


def test_a_written_png_has_these_bytes_on_every_machine():
    assert images.encode_png(np.array([[[1, 2, 3]]], np.uint8)).hex() == (
        "89504e470d0a1a0a"
        "0000000d4948445200000001000000010802000000907753de"
        "0000000f49444154780101" + "0400fbff00010203" + "000e0007" + "2da233ec"
        "0000000049454e44ae426082"
    )


def test_a_png_of_anything_but_bytes_is_refused():
    for pixels in (
        np.zeros((2, 2, 3)),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros(3),
    ):
        with pytest.raises(ValueError, match="expected uint8"):
            images.encode_png(pixels)


# --- files of others ------------------------------------------------------------------------------------


def test_no_real_photograph_is_rejected():
    folder = DATA / "plant_seedlings_v2"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: the photographs are not part of this repository")
    for path in sorted(folder.glob("*/*.png"))[::20]:
        pixels = images.decode(path.read_bytes(), (64, 64))
        assert pixels.shape == (64, 64, 3)
        assert pixels.std() > 5, path


def test_of_the_collected_bad_files_each_is_decoded_or_rejected_in_time():
    archive = DATA / "bad_images_dev.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive}: the bad images are not part of this repository")
    outcomes = {}
    with tarfile.open(archive) as members:
        for member in members:
            if not member.isfile():
                continue
            started = time.perf_counter()
            try:
                images.decode(members.extractfile(member).read(), (64, 64))
                outcome = "decoded"
            except ImageError as error:
                outcome = error.reason
            assert time.perf_counter() - started < 10, member.name
            outcomes[member.name.split("/", 1)[1]] = outcome
    assert len(outcomes) > 400
    assert set(outcomes.values()) <= {"decoded", *schema.REJECT_REASONS}
    assert {
        name: outcomes[name]
        for name in (
            "generated/zero_byte.png",
            "generated/text_named.png",
            "generated/trunc_50pct.jpg",
            "generated/bomb_19000x19000_L.png",
            "generated/claims_65535x65535.png",
            "generated/png_bitflip.png",
            "generated/png_named.jpg",
            "generated/cmyk.jpg",
            "pngsuite/xcsn0g01.png",
            "pillow/hopper.psd",
        )
    } == {
        "generated/zero_byte.png": "empty",
        "generated/text_named.png": "not_an_image",
        "generated/trunc_50pct.jpg": "truncated",
        "generated/bomb_19000x19000_L.png": "too_large",
        "generated/claims_65535x65535.png": "too_large",
        "generated/png_bitflip.png": "corrupt",
        "generated/png_named.jpg": "decoded",
        "generated/cmyk.jpg": "decoded",
        "pngsuite/xcsn0g01.png": "corrupt",
        "pillow/hopper.psd": "unsupported_format",
    }
