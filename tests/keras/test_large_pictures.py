"""Pictures beyond the limits that Pillow has of its own."""

import warnings

from seedlings_spark import images
from tests.images.test_images import png, reason


def test_the_limit_is_the_callers_and_pillow_has_none_of_its_own():
    # Pillow would warn above 89,478,485 pixels, and raise above twice as many.
    limit = png(14_000, 14_000, 1, 0, [bytes(1750)] * 14_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = images.decode(limit, (4, 4), max_pixels=196_000_000)
    assert pixels.max() == 0
    assert reason(limit, max_pixels=195_999_999) == "too_large"
