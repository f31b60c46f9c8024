"""The benchmarks of scoring and of scaling: what their numbers mean."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from seedlings_spark import images
from seedlings_spark.benchmark import scale, score
from seedlings_spark.benchmark.train import Fit, Training

PLACE = {"master": "local[2]", "driver_cores": 2, "task_cpus": 1, "driver": {"cpu": "a processor"}}
SETTING = {
    **dataclasses.asdict(score.Scoring(8000, 64, "plain", "float32")),
    **PLACE,
    "cores": 2,
    "pictures": "1,000 different ones drawn",
    "picture_bytes": 97_000.0,
}


def _scored(
    number: int, name: str, steady: float | None, whole: float | None = None, precision: str = "float32"
) -> score.Measurement:
    return score.Measurement(number, name, precision, steady, whole, {"decode": 0.002, "forward": 0.001})


def _ratios(*measurements: score.Measurement) -> dict[tuple[str, str], Any]:
    return {(one["of"], one["to"]): one for one in score.ratios(measurements)}


def test_the_steady_state_has_no_start_in_it() -> None:
    # 10 s to start, 1 ms an image.
    assert score.steady(2000, 12.0, 8000, 18.0) == pytest.approx(1000)


def test_too_few_images_to_tell_have_no_steady_state() -> None:
    assert score.steady(2, 1.0, 8, 0.9) is None


def test_stock_elephas_starts_once_however_many_images_there_are() -> None:
    # 10 s to start, 20 ms an image: 8,000 images take 170 s.
    assert score.scaled_whole(30.0, 20.0, 1000, 8000) == pytest.approx(8000 / 170)
    assert score.scaled_whole(19.0, 20.0, 1000, 8000) == pytest.approx(8000 / 160)


def test_ratios_are_taken_within_each_round_and_held_against_their_targets() -> None:
    found = _ratios(
        *[_scored(number, "png", speed) for number, speed in enumerate((900.0, 450.0, 800.0), 1)],
        *[_scored(number, "limit", speed) for number, speed in enumerate((1000.0, 500.0, 1000.0), 1)],
    )
    (one,) = found.values()
    assert one["rounds"] == pytest.approx([0.9, 0.9, 0.8])
    assert (one["target"], one["is_met"]) == (0.88, True)


def test_precisions_are_not_mixed_but_where_that_is_the_question() -> None:
    found = _ratios(
        _scored(1, "png", 90.0, precision="mixed_bfloat16"),
        _scored(1, "png-auto", 100.0, precision="int8"),
        _scored(1, "limit", 100.0),
        _scored(1, "tf.data", 80.0),
    )
    assert set(found) == {("png-auto", "tf.data")}
    assert found["png-auto", "tf.data"]["median"] == pytest.approx(1.25)


def test_a_ratio_that_only_explains_has_no_verdict() -> None:
    (one,) = _ratios(_scored(1, "busy", 800.0), _scored(1, "limit", 1000.0)).values()
    assert one["target"] is one["is_met"] is None


def test_memory_may_grow_by_a_tenth() -> None:
    assert score.memory_growth({"2000": 1000, "20000": 1100})["is_met"]
    missed = score.memory_growth({"20000": 1200, "2000": 1000})
    assert missed["growth"] == pytest.approx(0.2) and not missed["is_met"]
    assert score.memory_growth({}) == {}


def test_the_report_of_scoring_shows_targets_and_whether_they_are_met() -> None:
    taken = [
        _scored(1, "limit", 1000.0),
        _scored(1, "limit-forward", 2000.0),
        _scored(1, "png", 800.0, 300.0),
        _scored(1, "table", 1900.0, 600.0),
        _scored(1, "table-auto", 3000.0, 600.0, "int8"),
        _scored(1, "stock", 50.0, 30.0),
    ]
    found = score.summary(SETTING, taken, {"2000": 2**30, "20000": 2**30})
    assert json.loads(json.dumps(found, allow_nan=False))["memory"]["growth"] == 0
    lines = [line.split() for line in score.report(found).splitlines()]
    assert [
        "png",
        "/",
        "limit,",
        "steady",
        "float32",
        "0.80",
        "0.80",
        "0.80",
        ">=",
        "0.88",
        "missed",
    ] in lines
    table = "table / limit-forward, steady float32 0.95 0.95 0.95 >= 0.92 met"
    assert table.split() in lines
    stock = ["table-auto / stock, whole int8, 20.00 20.00 20.00 >= 15 met", "call float32"]  # wrapped
    assert [each.split() for each in stock] in [lines[place : place + 2] for place in range(len(lines))]
    assert ["limit", "2.00", "1.00", "3.00"] in lines
    assert ["png", "float32", "800", "800", "800", "300", "300", "300"] in lines


def test_a_drawn_picture_is_a_pure_function_that_a_png_gives_back() -> None:
    pixels = score.picture(3)
    assert pixels.shape == (224, 224, 3) and (pixels == score.picture(3)).all()
    content = score.encode_png(pixels)
    assert 80_000 < len(content) < 110_000  # 72 kB on the average of the real ones
    assert (images.decode(content, (224, 224)) == pixels).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 3, 3), (2, 9, 3)], ids=str)
def test_pixels_of_any_shape_survive_their_png(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert (images.decode(score.encode_png(pixels), shape[:2]) == pixels).all()


TRAINING = Training(
    num_images=640,
    image_size=64,
    epochs=3,
    num_workers=2,
    batch_size=32,
    network="plain",
    precision="float32",
)
OF_DRIVER = {
    "vector_bytes": 2_000_000,
    "state_bytes": 6_000_000,
    "take": 0.002,
    "merge": 0.001,
    "apply": 0.003,
    "adopt": 0.003,
    "rule": 0.001,
    "cores": 2,
}


def _trained(number: int, workers: int, compute: float, outside: float) -> scale.Measurement:
    return scale.Measurement(number, workers, "float32", workers * 32 / (compute + outside), compute, outside)


def test_a_runs_seconds_are_shared_by_its_exchanges() -> None:
    # Two workers, 10 steps, two epochs after the first: 40 exchanges.
    fit = Fit("float32", 9.0, (3.0, 5.0, 7.0), 1.0, {"compute": 4.0, "exchange": 0.4, "input": 1.0}, 10)
    one = scale.measurement(1, TRAINING, fit)
    assert one.images_per_second == pytest.approx(640 * 2 / 4)
    assert (one.compute, one.outside) == pytest.approx((0.1, 0.01))


def test_what_is_not_the_drivers_is_the_workers_own() -> None:
    taken = [_trained(1, 1, 0.1, 0.010), _trained(1, 2, 0.2, 0.5)]
    found = scale.costs(OF_DRIVER, taken, 32)
    assert found.compute == 0.1
    assert found.exchange == pytest.approx(0.010 - 0.002 - 0.001 - 0.003)


def test_predictions_name_a_bound_for_every_mode_network_and_number_of_workers() -> None:
    setting = {**dataclasses.asdict(TRAINING), **PLACE, "workers": [1, 2, 4], "is_local": True}
    setting["corpus_images"] = scale.CORPUS_IMAGES
    taken = [_trained(1, 1, 0.1, 0.010), _trained(1, 2, 0.1, 0.012), _trained(1, 4, 0.2, 0.030)]
    found = scale.summary(setting, OF_DRIVER, taken)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    assert len(found["predictions"]) == 2 * 3 * len(scale.NETWORKS) * len(scale.PREDICTED)
    assert {one["bound"] for one in found["predictions"]} == {"compute", "network", "server"}
    assert len(found["remedies"]) == len(scale.REMEDIES) * len(scale.NETWORKS)
    by_workers = {one["num_workers"]: one for one in found["measured"]}
    # By one worker's costs, the model says of that worker what was measured.
    assert by_workers[1]["measured_by_model"] == pytest.approx(1)
    # Four workers on two cores take turns: 2 x 104 ms, 4 x 1 ms to take on two cores, 4 ms to merge, 3 ms.
    assert by_workers[4]["model"] == pytest.approx(4 * 32 / (0.208 + 0.004 + 0.004 + 0.003))
    text = scale.report(found)
    assert "more workers than the 2 cores" in text and "a ring of the" in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_epoch_is_shared_by_all_workers() -> None:
    steps = {frequency: plan.steps for _, frequency, plan in scale.plans(64, 10, 32)}
    assert steps == {"batch": 1, "10": 10, "epoch": 49}  # 100,000 images / 2,048
