"""Each format's own ways to be half a picture, to cost too much, or to be odd and still whole.

Pixels are compared with what the files were made of, by hand where the writer would be Pillow's, which also reads them.
"""

import io
import itertools
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from seedlings_spark import images
from seedlings_spark.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

HEIGHT, WIDTH = 19, 23  # no multiples of a byte's pixels


def encoded(pixels, format_, **options):
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, format_, **options)
    return stream.getvalue()


def picture(height=HEIGHT, width=WIDTH, channels=3):
    generator = np.random.default_rng([height, width, channels])
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_it_is(content, height=HEIGHT, width=WIDTH):
    return images.decode(content, (height, width))


def rejected(content, **options):
    with pytest.raises(ImageError) as caught:
        images.decode(content, (8, 8), **options)
    return caught.value.reason, caught.value.detail


def packed(values, depth, row_multiple=1):
    """Rows of numbers of `depth` bits, the first in a byte's highest, as bytes of shape (height, length)."""
    bits = (values[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % row_multiple)))


# --- PNG ------------------------------------------------------------------------------------------------


def chunk(kind, data, checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(width, height, depth, colour, data, *, before=b"", behind=b"", interlace=0):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    pixels = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + behind + chunk(b"IEND", b"")


# Section 8 of the PNG specification: first column and row of each pass, and its steps.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_rows(values, depth, interlace):
    """`values` of shape (height, width, channels), as the rows of a PNG without filters."""
    channels = values.shape[2]
    parts = [values[y::dy, x::dx] for x, y, dx, dy in PASSES] if interlace else [values]
    rows = (packed(part.reshape(len(part), -1), depth) for part in parts if part.size)
    assert channels
    return b"".join(np.pad(each, ((0, 0), (1, 0))).tobytes() for each in rows)


PNG_KINDS = [
    (colour, depth, interlace)
    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16)))
    for depth, interlace in itertools.product(depths, (0, 1))
]


@pytest.mark.parametrize(("colour", "depth", "interlace"), PNG_KINDS)
@pytest.mark.parametrize("fill", ["noise", "flat"])
def test_a_png_is_whole_or_none_whatever_its_kind(colour, depth, interlace, fill):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    values = np.random.default_rng(depth).integers(0, 1 << depth, (HEIGHT, WIDTH, channels))
    if fill == "flat":  # of the very value that pixels are filled with in advance
        values[:] = 0xA5A5 >> (16 - depth)
    if channels in (2, 4):
        values[:, :, -1] = (1 << depth) - 1
    palette = np.random.default_rng(7).integers(0, 256, (1 << min(depth, 8), 3), dtype=np.uint8)
    before = chunk(b"PLTE", palette.tobytes()) if colour == 3 else b""
    data = png_rows(values, depth, interlace)
    shown = values[:, :, : 3 if channels > 2 else 1]
    if colour == 3:
        expected = palette[shown[:, :, 0]]
    elif depth == 16:  # grey is rounded, colours keep their upper bits: see `images.decode`
        expected = shown >> 8 if colour != 0 else np.round(shown / 257)
    else:
        expected = shown * 255 // ((1 << depth) - 1)
    got = as_it_is(png(WIDTH, HEIGHT, depth, colour, data, before=before, interlace=interlace))
    assert np.array_equal(got, np.broadcast_to(expected, got.shape))
    for share in (0.0, 0.3, 0.5, 0.9):
        half = png(
            WIDTH, HEIGHT, depth, colour, data[: int(share * len(data))], before=before, interlace=interlace
        )
        reason, detail = rejected(half)
        assert reason in ("truncated", "corrupt"), detail


def test_what_a_png_tells_besides_its_pixels_does_not_decide():
    pixels = picture()
    data = png_rows(pixels, 8, 0)
    large = bytes(1_500_000)
    for odd in (
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(large)),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(large)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(large)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + large),
        chunk(b"tEXt", b"Comment\0" + large) * 3,
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(large)),
        chunk(b"iCCP", b"", checksum=1),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08", checksum=1),
        chunk(b"gAMA", b"\0", checksum=1),
        chunk(b"PLTE", b"\1\2\3\4", checksum=1),  # of colours that need none
        chunk(b"abCd", b"x", checksum=1) * 2000,
    ):
        for place in ("before", "behind"):
            content = png(WIDTH, HEIGHT, 8, 2, data, **{place: odd})
            assert np.array_equal(as_it_is(content), pixels), odd[:40]
    still = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>')
    for place in ("before", "behind"):
        turned = png(WIDTH, HEIGHT, 8, 2, data, **{place: still})
        assert np.array_equal(as_it_is(turned), pixels[::-1, ::-1])


# --- JPEG -----------------------------------------------------------------------------------------------


def colourful(height, width):
    """A picture with something in every block, so that none can be missing unnoticed."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng([height, width]).normal(0, 12, (height, width, 3))
    waves = np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 9) * np.cos(y / 7)], -1)
    return (waves + noise).clip(0, 255).astype(np.uint8)


JPEG_KINDS = {
    "plain": {},
    "not subsampled": {"subsampling": 0},
    "optimised": {"optimize": True, "quality": 30},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 7},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_jpeg_is_whole_or_none_and_has_pillows_pixels(kind, mode):
    content = encoded(Image.fromarray(colourful(120, 150)).convert(mode), "JPEG", **JPEG_KINDS[kind])
    for scale in (1, 2, 4, 8):
        opened = Image.open(io.BytesIO(content))
        opened.draft(None, (150 // scale, 120 // scale))
        mine = Image.open(io.BytesIO(content))
        mine.draft(None, (150 // scale, 120 // scale))
        mine = images._load_jpeg(mine, images.jpeg.essence(content))
        assert np.array_equal(np.asarray(mine.convert(mode)), np.asarray(opened))
    scan = content.index(b"\xff\xda") + 20
    for share in (0.1, 0.5, 0.9):
        cut = content[: scan + int(share * (len(content) - scan))]
        cut = cut[:-1] if cut.endswith(b"\xff") else cut
        for what, half in {
            "cut": cut,
            "end mark": cut + b"\xff\xd9",
            "zeros": cut + bytes(len(content) - len(cut)),
            "zeros, then the end mark": cut + bytes(len(content) - len(cut)) + b"\xff\xd9",
        }.items():
            assert rejected(half)[0] in ("truncated", "corrupt"), (share, what)
    without_end = content[:-2]
    assert rejected(without_end) == ("truncated", "the file ends without the mark of its end (EOI)")
    padded = without_end + bytes(40) + b"\xff\xd9"  # as some cameras write it
    assert np.array_equal(images.decode(padded, (8, 8)), images.decode(content, (8, 8)))


def test_a_jpeg_lacks_no_scan_and_no_interval_between_restarts():
    content = encoded(colourful(64, 64), "JPEG", progressive=True)
    scans = [at for at in range(len(content) - 1) if content[at : at + 2] == b"\xff\xda"]
    for number in range(1, len(scans)):
        tables = content.rindex(b"\xff\xc4", 0, scans[number])
        reason, detail = rejected(content[:tables] + b"\xff\xd9")
        assert (reason, "coefficients of component" in detail) == ("truncated", True)
    restarts = encoded(colourful(64, 64), "JPEG", restart_marker_blocks=2)
    first, second = restarts.index(b"\xff\xd1"), restarts.index(b"\xff\xd2")
    assert rejected(restarts[:first] + restarts[second:])[0] in ("corrupt", "truncated")


def test_what_a_jpeg_tells_besides_its_pixels_does_not_decide():
    content = encoded(colourful(40, 40), "JPEG")
    expected = images.decode(content, (40, 40))

    def segment(marker, data):
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    for odd in (
        segment(0xEE, b"Adobe\0"),
        segment(0xE0, b"JFIF\0"),
        segment(0xED, b"Photoshop 3.0\0008BIM\x03\xed"),
        segment(0xE2, b"ICC_PROFILE\0\1\5" + bytes(60_000)) * 30,
        segment(0xE2, b"MPF\0II*\0"),
        segment(0xE1, b"Exif\0\0" + b"II*\0\xff\xff\xff\xff") * 300,
        segment(0xFE, bytes(65_000)) * 50,
        b"\xff" * 100_000,
        b"\xff\xef\0\2" * 90_000,
    ):
        assert np.array_equal(images.decode(content[:2] + odd + content[2:], (40, 40)), expected), odd[:20]
    assert rejected(content[:2] + b"\xff\xef\0\2" * 110_000 + content[2:])[0] == "too_large"


@pytest.mark.parametrize(
    ("marker", "precision", "words"),
    [(0xC3, 8, "lossless"), (0xC5, 8, "hierarchical"), (0xC1, 12, "12 bits a channel")],
)
def test_a_jpeg_of_a_rare_kind_is_said_to_be_one(marker, precision, words):
    content = bytearray(encoded(colourful(8, 8), "JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 1], content[at + 4] = marker, precision
    reason, detail = rejected(bytes(content))
    assert (reason, words in detail) == ("unsupported_format", True), detail


# --- GIF ------------------------------------------------------------------------------------------------


def gif_palette(colours):
    made = Image.fromarray(
        np.random.default_rng(1).integers(0, colours, (HEIGHT, WIDTH), dtype=np.uint8), "P"
    )
    palette = np.random.default_rng(2).integers(0, 256, (colours, 3), dtype=np.uint8)
    made.putpalette(palette.tobytes())
    return made, palette[np.asarray(made)]


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("colours", [2, 3, 16, 256])
def test_a_gif_is_whole_or_none(colours, interlace):
    made, expected = gif_palette(colours)
    content = encoded(made, "GIF", interlace=interlace, optimize=False)
    assert np.array_equal(as_it_is(content), expected)
    # The data end properly after the first half: those of a lower picture under another height.
    lower = encoded(made.crop((0, 0, WIDTH, HEIGHT // 2)), "GIF", interlace=interlace, optimize=False)
    frame = lower.index(b",\0\0\0\0")
    half = (
        lower[:8]
        + struct.pack("<H", HEIGHT)
        + lower[10 : frame + 7]
        + struct.pack("<H", HEIGHT)
        + lower[frame + 9 :]
    )
    assert rejected(half)[0] == "truncated"


def test_a_gif_whose_frame_lies_beyond_its_screen_is_shown_and_one_without_pixels_is_corrupt():
    made, expected = gif_palette(16)
    content = encoded(made, "GIF", optimize=False)
    frame = content.index(b",\0\0\0\0")
    moved = content[: frame + 1] + struct.pack("<HH", 2, 1) + content[frame + 5 :]
    got = as_it_is(moved, HEIGHT + 1, WIDTH + 2)
    assert np.array_equal(got[1:, 2:], expected)
    empty = content[: frame + 5] + bytes(4) + content[frame + 9 :]
    assert rejected(empty) == ("corrupt", "a first frame of 0 x 0 pixels")
    assert rejected(content[:-40])[0] == "truncated"


# --- BMP ------------------------------------------------------------------------------------------------

PALETTES = {
    "black, white": [(0, 0, 0), (255, 255, 255)],
    "white, black": [(255, 255, 255), (0, 0, 0)],
    "two greys": [(10, 10, 10), (200, 200, 200)],
    "two colours": [(255, 0, 0), (0, 0, 255)],
    "grey ramp": [(value, value, value) for value in range(256)],
    "ramp downwards": [(255 - value,) * 3 for value in range(256)],
    "one": [(9, 8, 7)],
    "colours": [(value, 255 - value, value * 7 % 256) for value in range(256)],
}


def bmp(values, depth, palette=(), *, header=40, top_down=False, compression=0, data=None, masks=b""):
    height, width = values.shape[:2]
    if data is None:
        rows = values if top_down else values[::-1]
        data = packed(rows, depth, 4).tobytes() if depth <= 8 else np.ascontiguousarray(rows).tobytes()
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, depth)
        table = b"".join(bytes(colour[::-1]) for colour in palette)
    else:
        fields = (width, -height if top_down else height, 1, depth, compression, 0, 0, 0, len(palette), 0)
        head = struct.pack("<IiiHHIIiiII", header, *fields).ljust(header, b"\0")
        table = masks + b"".join(bytes((*colour[::-1], 0)) for colour in palette)
    at = 14 + len(head) + len(table)
    return b"BM" + struct.pack("<IHHI", at + len(data), 0, 0, at) + head + table + data


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("name", PALETTES)
def test_a_bmp_of_any_depth_shows_the_colours_of_its_palette(depth, name):
    palette = PALETTES[name][: 1 << depth]
    values = np.random.default_rng(depth).integers(0, len(palette), (HEIGHT, WIDTH))
    expected = np.array(palette, np.uint8)[values]
    for header, top_down in ((40, False), (40, True), (108, False), (124, False)):
        content = bmp(values, depth, palette, header=header, top_down=top_down)
        assert np.array_equal(as_it_is(content), expected), (header, top_down)
    whole = [*palette, *[(1, 2, 3)] * ((1 << depth) - len(palette))]
    assert np.array_equal(as_it_is(bmp(values, depth, whole, header=12)), expected)
    assert rejected(bmp(values, depth, palette)[:-40])[0] == "truncated"


def test_a_bmp_of_true_colours():
    pixels = picture()
    rows = np.pad(pixels[::-1, :, ::-1].reshape(HEIGHT, -1), ((0, 0), (0, -WIDTH * 3 % 4)))
    assert np.array_equal(as_it_is(bmp(pixels, 24, data=rows.tobytes())), pixels)
    wide = np.dstack([pixels[:, :, ::-1], np.zeros((HEIGHT, WIDTH), np.uint8)])
    assert np.array_equal(as_it_is(bmp(wide, 32)), pixels)
    five = pixels.astype(int) >> 3
    small = np.pad(five[:, :, 0] << 10 | five[:, :, 1] << 5 | five[:, :, 2], ((0, 0), (0, 1))).astype("<u2")
    content = bmp(five, 16, data=small[::-1].tobytes())
    assert np.array_equal(as_it_is(content), five * 255 // 31)


def run_lengths(values, depth):
    """Values as runs and, where neighbours differ, as they are; rows end with an escape."""
    made = b""
    for row in values[::-1]:
        x = 0
        while x < len(row):
            same = next((n for n in range(1, len(row) - x) if row[x + n] != row[x]), len(row) - x)
            if same > 1 or len(row) - x < 4:
                both = row[x] if depth == 8 else row[x] << 4 | row[x]
                made += bytes([min(same, 255), both])
                x += min(same, 255)
            else:
                literal = row[x : x + 4]
                data = packed(literal[None], depth).tobytes()
                made += bytes([0, 4]) + data + bytes(len(data) % 2)
                x += 4
        made += b"\0\0"
    return made[:-2] + b"\0\1"


@pytest.mark.parametrize("depth", [4, 8])
def test_a_bmp_of_run_lengths_is_whole_or_none(depth):
    palette = PALETTES["colours"][: 1 << depth]
    values = np.random.default_rng(depth).integers(0, 1 << depth, (HEIGHT, WIDTH)) // 3
    values[3:8] = 5
    values[:, 4:11] = 1
    compression = {8: 1, 4: 2}[depth]
    data = run_lengths(values, depth)
    expected = np.array(palette, np.uint8)[values]
    assert np.array_equal(as_it_is(bmp(values, depth, palette, compression=compression, data=data)), expected)
    for half in (data[: len(data) // 2], data[: len(data) // 2 // 2 * 2] + b"\0\1"):
        assert rejected(bmp(values, depth, palette, compression=compression, data=half))[0] == "truncated"
    # Rows of which the file has half, or less, and the others are left out.
    for given, is_whole in ((WIDTH - WIDTH // 2, True), (WIDTH // 2 - 1, False)):
        rows = (bytes([given, 1 if depth == 8 else 0x11]) + b"\0\0") * HEIGHT + b"\0\1"
        content = bmp(values, depth, palette, compression=compression, data=rows)
        if is_whole:
            assert np.array_equal(
                as_it_is(content)[0, given - 2 :], np.array(palette)[[1, 1] + [0] * (WIDTH - given)]
            )
        else:
            assert rejected(content) == ("truncated", f"{given * HEIGHT:,} of {WIDTH * HEIGHT:,} pixels")
    alternating = bmp(np.zeros((1, 5), int), 4, palette[:16], compression=2, data=b"\5\x12\0\1")
    assert np.array_equal(as_it_is(alternating, 1, 5)[0], np.array(palette, np.uint8)[[1, 2, 1, 2, 1]])


def test_the_work_of_run_lengths_is_limited(monkeypatch):
    palette = PALETTES["black, white"]
    monkeypatch.setattr("seedlings_spark.images.bmp._MAX_ESCAPES", 50_000)
    jumps = bmp(np.zeros((8, 8)), 8, palette, compression=1, data=b"\0\2\0\0" * 60_000)
    assert rejected(jumps) == ("too_large", "the picture is in more than 50,000 parts")
    # 8 million runs of which a row has room for eight.
    runs = bmp(np.zeros((8, 8)), 8, palette, compression=1, data=(b"\1\1" * 1_000_000 + b"\0\0") * 8)
    tracemalloc.start()
    assert images.decode(runs, (8, 8)).min() == 255
    assert tracemalloc.get_traced_memory()[1] < 4 * len(runs)
    tracemalloc.stop()


# --- TIFF -----------------------------------------------------------------------------------------------


def directory(content):
    """Tag -> (place of its entry, type, count, place of its values) of a little-endian TIFF."""
    (at,) = struct.unpack_from("<I", content, 4)
    (number,) = struct.unpack_from("<H", content, at)
    found = {}
    for entry in range(at + 2, at + 2 + 12 * number, 12):
        tag, type_, count = struct.unpack_from("<HHI", content, entry)
        inline = count * {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}[type_] <= 4
        found[tag] = (
            entry,
            type_,
            count,
            entry + 8 if inline else struct.unpack_from("<I", content, entry + 8)[0],
        )
    return found


def patched(content, place, layout, *values):
    length = struct.calcsize("<" + layout)
    return content[:place] + struct.pack("<" + layout, *values) + content[place + length :]


def tiff(entries, data=b"", order="<"):
    """A TIFF by hand: `entries` are (tag, type, values), `{data}` of a value is where the data begin."""
    letters = {1: "B", 3: "H", 4: "I"}
    at = 8 + 2 + 12 * len(entries) + 4
    directory_, behind = struct.pack(order + "H", len(entries)), b""
    start = at + sum(
        len(values) * struct.calcsize(letters[type_])
        for _, type_, values in entries
        if len(values) * struct.calcsize(letters[type_]) > 4
    )
    for tag, type_, values in sorted(entries):
        numbers = [start if value == "data" else value for value in values]
        packed_ = struct.pack(f"{order}{len(values)}{letters[type_]}", *numbers)
        directory_ += struct.pack(order + "HHI", tag, type_, len(values))
        if len(packed_) <= 4:
            directory_ += packed_.ljust(4, b"\0")
        else:
            directory_ += struct.pack(order + "I", at + len(behind))
            behind += packed_
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + directory_ + bytes(4) + behind + data


TIFF_KINDS = {
    name: encoded(made, "TIFF", compression=name, **options)
    for name, made, options in (
        ("raw", Image.fromarray(picture(60, 40)), {}),
        ("tiff_lzw", Image.fromarray(picture(60, 40)), {}),
        ("tiff_adobe_deflate", Image.fromarray(picture(60, 40)), {}),
        ("packbits", Image.fromarray(picture(60, 40)), {}),
        ("jpeg", Image.fromarray(picture(60, 40)), {}),
        ("group3", Image.fromarray(picture(60, 40)).convert("1"), {}),
        ("group4", Image.fromarray(picture(60, 40)).convert("1"), {}),
    )
    for options in ({"tiffinfo": {278: 8}, "strip_size": 1000},)
}


@pytest.mark.parametrize("name", TIFF_KINDS)
def test_a_tiff_is_whole_or_none(name, capfd):
    content = TIFF_KINDS[name]
    images.decode(content, (8, 8))
    entries = directory(content)
    places, lengths = entries[273], entries[279]
    letter = {3: "H", 4: "I"}[lengths[1]]
    (first,) = struct.unpack_from("<" + letter, content, lengths[3])
    short = {
        "no bytes": patched(content, lengths[3], letter, 0),
        "a strip at 0": patched(content, places[3], {3: "H", 4: "I"}[places[1]], 0),
        "a strip behind the end": patched(content, places[3], {3: "H", 4: "I"}[places[1]], len(content) - 3),
        "no table": patched(content, places[0], "H", 60_000),
    }
    short["half the bytes of a strip"] = patched(content, lengths[3], letter, first // 2)
    (start,) = struct.unpack_from("<I", content, places[3])
    lost = bytes(first - first // 2)
    if name not in ("raw", "jpeg"):  # zeros are pixels there
        short["half a strip lost"] = content[: start + first // 2] + lost + content[start + first :]
    if places[2] > 1:
        for entry in (places, lengths):
            short[f"half of table {entry[0]}"] = patched(content, entry[0] + 4, "I", entry[2] // 2)
    (rows,) = struct.unpack_from("<H" if entries[257][1] == 3 else "<I", content, entries[257][3])
    short["twice the height"] = patched(
        content, entries[257][3], "H" if entries[257][1] == 3 else "I", 2 * rows
    )
    for what, half in short.items():
        try:
            images.decode(half, (8, 8))
        except ImageError as error:
            assert error.reason in ("truncated", "corrupt"), (what, str(error))
        else:
            raise AssertionError(f"{what}: decoded")
    assert capfd.readouterr().err == ""  # libtiff would write it there


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("photometric", [0, 1, 3])
def test_a_tiff_of_any_depth_shows_its_greys_and_colours(depth, photometric, order):
    if (depth == 16 and photometric == 3) or (depth == 16 and order == ">" and photometric == 0):
        pytest.skip("Pillow does not read them")
    values = np.random.default_rng(depth).integers(0, 1 << depth, (HEIGHT, WIDTH))
    stored = values.astype(order + "u2").view(np.uint8) if depth == 16 else packed(values, depth)
    entries = [(256, 3, [WIDTH]), (257, 3, [HEIGHT]), (258, 3, [depth]), (259, 3, [1]), (262, 3, [photometric]),
               (273, 4, ["data"]), (277, 3, [1]), (278, 3, [HEIGHT]), (279, 4, [stored.size])]  # fmt: skip
    if photometric == 3:
        palette = np.random.default_rng(3).integers(0, 256, (1 << depth, 3))
        entries.append((320, 3, [int(value) * 257 for value in palette.T.ravel()]))
        expected = palette[values]
    else:
        grey = np.round(values * 255 / ((1 << depth) - 1))
        expected = np.repeat((255 - grey if photometric == 0 else grey)[:, :, None], 3, axis=2)
    assert np.array_equal(as_it_is(tiff(entries, stored.tobytes(), order)), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["planes", "tiles", "tiles as strips", "big"])
def test_a_tiff_in_any_parts_is_whole_or_none(layout, order):
    pixels = picture(32, 32)
    entries = [
        (256, 3, [32]),
        (257, 3, [32]),
        (258, 3, [8, 8, 8]),
        (259, 3, [1]),
        (262, 3, [2]),
        (277, 3, [3]),
    ]
    if layout == "planes":
        parts = [pixels[:, :, band] for band in range(3)]
        entries += [(278, 3, [32]), (284, 3, [2])]
    elif layout == "big":
        parts = [pixels]
    else:
        parts = [pixels[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)]
        entries += [(322, 3, [16]), (323, 3, [16])]
    places, lengths = (324, 325) if layout == "tiles" else (273, 279)
    data = b"".join(part.tobytes() for part in parts)
    number, length = len(parts), len(data) // len(parts)

    def made(number):
        if layout == "big":
            letters = {3: "H", 16: "Q"}
            tags = sorted(
                [
                    *entries,
                    (278, 3, [32]),
                    (places, 16, [16 + 8 + 20 * 9 + 8]),
                    (lengths, 16, [number * length]),
                ]
            )
            body = b"".join(
                struct.pack(order + "HHQ", tag, type_, len(values))
                + b"".join(struct.pack(order + letters[type_], value) for value in values).ljust(8, b"\0")
                for tag, type_, values in tags
            )
            head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, 16)
            return head + struct.pack(order + "Q", len(tags)) + body + bytes(8) + data
        sizes = (lengths, 4, [length] * number)
        empty = tiff([*entries, (places, 4, [0] * number), sizes], b"", order)
        offsets = [len(empty) + length * part for part in range(number)]
        return tiff([*entries, (places, 4, offsets), sizes], data, order)

    assert np.array_equal(as_it_is(made(number), 32, 32), pixels)
    assert rejected(made(number)[:-300])[0] == "truncated"
    assert rejected(made(number - 1))[0] in ("truncated", "corrupt")


def test_what_a_tiff_tells_besides_its_pixels_does_not_decide_and_costs_nothing(capfd):
    pixels = picture()
    plain = [(256, 3, [WIDTH]), (257, 3, [HEIGHT]), (258, 3, [8, 8, 8]), (259, 3, [1]), (262, 3, [2]),
             (273, 4, ["data"]), (277, 3, [3]), (278, 3, [HEIGHT]), (279, 4, [pixels.size])]  # fmt: skip
    for odd in (
        [(700, 1, [60] * 1_500_000)],
        [(34675, 1, [1] * 1_500_000)],
        [(65000, 4, [1])],
        [(34665, 4, [4_000_000_000])],
        [(330, 4, [8])],
        [(40_000 + tag, 4, [7]) for tag in range(3000)],
    ):
        content = tiff(plain + odd, pixels.tobytes())
        assert np.array_equal(as_it_is(content), pixels), odd[0][:2]
    assert capfd.readouterr().err == ""


def test_pillow_and_libtiff_write_nothing_of_their_own(capfd):
    seven = [
        (256, 3, [8]),
        (257, 3, [8]),
        (258, 3, [8]),
        (259, 3, [1]),
        (262, 3, [1]),
        (277, 3, [7]),
        (278, 3, [8]),
    ]
    contents = [tiff([*seven, (273, 4, ["data"]), (279, 4, [448])], bytes(448))]
    generator = np.random.default_rng(5)
    for content in TIFF_KINDS.values():
        for _ in range(40):
            damaged = bytearray(content)
            for at in generator.integers(8, len(content), 8):
                damaged[at] = generator.integers(0, 256)
            contents.append(bytes(damaged))
    details = []
    for content in contents:
        try:
            images.decode(content, (8, 8), max_pixels=1_000_000)
        except ImageError as error:
            details.append(error.detail)
    assert any("Decode: " in detail for detail in details)  # which libtiff said
    assert capfd.readouterr() == ("", "")


def memory_of(content):
    tracemalloc.start()
    try:
        images.decode(content, (8, 8))
        outcome = "decoded"
    except ImageError as error:
        outcome = error.reason
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return outcome, peak / len(content)


def test_a_table_of_tiles_costs_no_more_memory_than_the_file():
    number = 2_000_000
    table = np.full(number, 200, "<u4").tobytes()
    shape = [
        (256, 4, [8]),
        (257, 4, [8]),
        (258, 3, [8]),
        (259, 3, [1]),
        (262, 3, [1]),
        (277, 3, [1]),
        (278, 4, [8]),
    ]
    for width, height, tags in ((8, 8, (273, 279)), (8, 8, (324, 325)), (1, number, (273, 279))):
        entries = [(tag, type_, values) for tag, type_, values in shape if tag not in (256, 257, 278)]
        entries += [(256, 4, [width]), (257, 4, [height]), (278, 4, [1])]
        if tags[0] == 324:
            entries += [(322, 4, [16]), (323, 4, [16])]
        entries += [(tag, 4, ["data"]) for tag in tags]
        content = tiff(entries, table)
        for tag in tags:
            entry = directory(content)[tag][0]
            start = struct.unpack_from("<I", content, entry + 8)[0]
            content = patched(content, entry + 4, "II", number, start)
        outcome, peak = memory_of(content)
        assert outcome in ("truncated", "too_large", "decoded")
        assert peak < 4, (width, height, tags)


def test_the_same_bytes_as_many_strips_are_refused():
    number, strip = 1000, bytes(8_000)
    entries = [(256, 4, [8]), (257, 4, [8 * number]), (258, 3, [8]), (259, 3, [5]), (262, 3, [1]), (277, 3, [1]),
               (278, 4, [8]), (273, 4, ["data"] * number), (279, 4, [8_000] * number)]  # fmt: skip
    assert rejected(tiff(entries, strip))[0] == "too_large"


# --- reasons --------------------------------------------------------------------------------------------


def test_reasons_and_details_name_the_cause():
    grey = [(256, 3, [8]), (257, 3, [8]), (258, 3, [8]), (262, 3, [1]), (277, 3, [1]), (278, 3, [8])]
    data = [(273, 4, ["data"]), (279, 4, [64])]
    values = np.zeros((4, 4), int)
    masks = struct.pack("<III", 0xFC00, 0x3F0, 0xF)
    odd = {
        "unknown critical chunk": (png(1, 1, 8, 0, bytes(2), before=chunk(b"CgBI", b"")), "unsupported_format"),
        "13 x 1 pixels, of 3 bits": (png(1, 13, 3, 0, bytes(26)), "corrupt"),
        "compression 60000": (tiff([*grey, (259, 3, [60_000]), *data], bytes(64)), "unsupported_format"),
        "unknown pixel mode": (
            tiff([*(e for e in grey if e[0] != 262), (262, 3, [9]), (259, 3, [1]), *data], bytes(64)),
            "unsupported_format",
        ),
        "does not say where": (tiff([*grey, (259, 3, [1])]), "corrupt"),
        "8 bits a pixel with compression 4": (bmp(values, 8, [(0, 0, 0)], compression=4), "unsupported_format"),
        "bitfields layout": (bmp(values, 16, compression=3, masks=masks, data=bytes(32)), "unsupported_format"),
        "header of 77 bytes": (bmp(values, 8, [(0, 0, 0)], header=77), "corrupt"),
    }  # fmt: skip
    for words, (content, expected) in odd.items():
        reason, detail = rejected(content)
        assert (reason, words in detail) == (expected, True), (words, reason, detail)
