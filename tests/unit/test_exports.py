"""The resizing rule that lies beside every export, as code, gives the pixels that the networks were trained on."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seedlings_spark import images
from seedlings_spark.choices import ASPECTS
from seedlings_spark.exports import card
from seedlings_spark.models.store import ModelVersion

NOISE = np.random.default_rng(0).integers(0, 256, (61, 97, 4), dtype=np.uint8)
DEEP = (NOISE[..., 0].astype(np.uint16) << 8) | NOISE[..., 1]
PICTURES = {
    "colour": Image.fromarray(NOISE[..., :3]),
    "grey": Image.fromarray(NOISE[..., 0]),
    "transparent": Image.fromarray(NOISE),
    "a palette": Image.fromarray(NOISE[..., :3]).quantize(16),
    "grey of 16 bits": Image.fromarray(DEEP),
    "smaller than the network's": Image.fromarray(NOISE[:9, :5, :3]),
}


def rule(size: tuple[int, int], aspect: str) -> Any:
    """The function `pixels` of the code beside an export."""
    manifest = {"image_size": list(size), "classes": ["a", "b"], "files": {}, "aspect": aspect}
    scope: dict[str, Any] = {"__name__": "preprocessing"}
    exec(card.preprocessing(ModelVersion("m", "v0001", "", manifest)), scope)
    return scope["pixels"]


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("size", [(32, 32), (20, 48)])
def test_the_rule_as_code_is_the_rule(size: tuple[int, int], aspect: str) -> None:
    pixels = rule(size, aspect)
    for name, picture in PICTURES.items():
        file = io.BytesIO()
        picture.save(file, "PNG")
        expected = images.decode(file.getvalue(), size, aspect=aspect)
        assert np.array_equal(pixels(file), expected), name


def test_the_rule_as_code_refuses_pictures_whose_white_depends_on_the_file() -> None:
    for values in (np.linspace(0, 1, 64, dtype=np.float32), np.arange(64, dtype=np.int32) * 2**24):
        file = io.BytesIO()
        Image.fromarray(values.reshape(8, 8)).save(file, "TIFF")
        with pytest.raises(ValueError, match="of 32 bits: what is white in it depends on the file"):
            rule((8, 8), "crop")(file)


def test_the_rule_as_code_turns_photographs() -> None:
    for orientation in range(1, 9):
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        PICTURES["colour"].save(file, "JPEG", quality=95, exif=exif)
        found, expected = rule((48, 32), "crop")(file), images.decode(file.getvalue(), (48, 32))
        assert np.array_equal(found, expected), orientation
