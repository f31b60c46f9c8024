import itertools

import numpy as np
import pytest

from seedlings_spark.images import corruptions
from seedlings_spark.reports import robustness

KINDS = {kind.name: kind for kind in corruptions.KINDS}
STRENGTHS = range(1, corruptions.STRENGTHS + 1)


def of_all_strengths(pixels: np.ndarray, name: str, content: str = "a") -> list[np.ndarray]:
    return [corruptions.corrupted(pixels, KINDS[name], strength, content) for strength in STRENGTHS]


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_is_corrupted_by_its_content_alone_and_at_any_size(name: str) -> None:
    for shape in [(1, 1, 3), (3, 17, 3), (40, 32, 3)]:
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        before = pixels.copy()
        found = of_all_strengths(pixels, name)
        assert all(each.shape == shape and each.dtype == np.uint8 for each in found)
        assert np.array_equal(found, of_all_strengths(pixels, name)) and np.array_equal(pixels, before)
    others = [of_all_strengths(pixels, name, content) for content in "bcdefgh"]
    is_drawn = name in ("noise", "brightness", "rotation", "occlusion", "colour shift")
    assert any(not np.array_equal(found, each) for each in others) == is_drawn


def test_each_kind_does_what_its_levels_say() -> None:
    grey = np.full((100, 100, 3), 120, np.uint8)
    noise = [each.astype(float) - 120 for each in of_all_strengths(grey, "noise")]
    assert [each.std() for each in noise[:4]] == pytest.approx([4, 8, 16, 32], rel=0.03)
    assert np.corrcoef(noise[0].ravel(), noise[3].ravel())[0, 1] > 0.99  # the same grains

    stops = np.array([0.25, 0.5, 1, 1.5, 2])
    darker, lighter = (np.clip(np.rint(120 * 2.0 ** (sign * stops)), 0, 255) for sign in (-1, 1))
    found = [[int(each[0, 0, 0]) for each in of_all_strengths(grey, "brightness", c)] for c in "abcdefgh"]
    assert {tuple(each) for each in found} == {tuple(darker), tuple(lighter)}

    halves = grey.copy()
    halves[:, 50:] = 20
    assert [int(np.ptp(each)) for each in of_all_strengths(halves, "contrast")] == [80, 60, 40, 20, 10]
    assert [float(each.mean()) for each in of_all_strengths(halves, "contrast")] == pytest.approx([70] * 5)

    covered = of_all_strengths(halves, "occlusion")
    shares = [float((each == 128).mean()) for each in covered]
    assert shares == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.4], abs=0.006)
    assert all(((a == 128) <= (b == 128)).all() for a, b in itertools.pairwise(covered))

    edge = [np.diff(each[50, :, 0].astype(float)) for each in of_all_strengths(halves, "blur")]
    widths = [np.sqrt((d * (np.arange(99) - 49) ** 2).sum() / d.sum()) for d in edge]
    assert widths[1:] == pytest.approx([1, 2, 4, 8], rel=0.1)  # of an edge that a Gaussian has blurred

    for content in "abc":
        for level, each in zip(
            (8, 16, 32, 48, 64), of_all_strengths(grey, "colour shift", content), strict=True
        ):
            shift = each[0, 0].astype(float) - 120
            assert shift.mean() == pytest.approx(0, abs=0.5)
            assert np.linalg.norm(shift) == pytest.approx(level * np.sqrt(1.5), abs=1.5)

    spot = np.zeros((101, 101, 3), np.uint8)
    spot[49:52, 69:72] = 255  # 20 to the right of the middle
    angles = []
    for each in of_all_strengths(spot, "rotation"):
        row, column = (np.argwhere(each[..., 0] > 60) - 50).mean(axis=0)
        assert np.hypot(row, column) == pytest.approx(20, abs=0.5)
        angles.append(abs(np.degrees(np.arctan2(row, column))))
    assert angles == pytest.approx([5, 10, 20, 30, 45], abs=2)

    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    assert [float(each[:, 8:-8].std()) < 70 for each in of_all_strengths(stripes, "low resolution")] == [
        False,
        *[True] * 4,
    ]
    rough = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    errors = [np.abs(each.astype(float) - rough).mean() for each in of_all_strengths(rough, "jpeg")]
    assert errors == sorted(errors) and errors[0] > 1


def test_the_numbers_of_predictions_and_the_strength_that_breaks() -> None:
    num = 20
    truth = np.arange(num) % 2
    predicted = np.repeat(truth[:, None], 1 + 9 * 5, axis=1)
    predicted[0] ^= 1  # wrong whatever is done
    predicted[1:3, 1 + 2] ^= 1  # noise of strength 3 takes two of 19, which is more than a tenth
    predicted[1:2, 1 + 1] ^= 1  # and of strength 2 one
    predicted[0, 1 + 4] ^= 1  # what noise of strength 5 puts right is not lost
    found = robustness.counted(truth, predicted)
    assert (found.num_images, found.right, found.accuracy) == (20, 19, 0.95)
    noise, blur = found.curves[:2]
    assert (noise.right, noise.lost, noise.breaks) == ((19, 18, 17, 19, 20), (0, 1, 2, 0, 0), 3)
    assert (blur.right, blur.lost, blur.breaks) == ((19,) * 5, (0,) * 5, None)
    assert found.mean(noise) == pytest.approx(93 / 100)
    assert found.mean() == pytest.approx((93 + 8 * 95) / 900)
