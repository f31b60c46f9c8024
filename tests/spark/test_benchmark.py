"""The benchmark of training: what its numbers mean, and a tiny run of all contestants."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from seedlings_spark import benchmark
from seedlings_spark.benchmark import train
from seedlings_spark.benchmark.train import STEADY, WHOLE, Fit, Training
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import ClusterError, OptionError
from tests.conftest import with_all

TINY = Training(
    num_images=32,
    image_size=32,
    epochs=2,
    num_workers=2,
    batch_size=8,
    network="plain",
    precision="float32",
)
# The others differ in options only; all of them with test --all.
MEASURED = tuple(train.CONTESTANTS) if os.environ.get("SEEDLINGS_TEST_ALL") else ("ours", "plain", "stock")
SETTING = {**vars(TINY), "master": "local[2]", "driver_cores": 2, "driver": {"cpu": "a processor"}}


def _measured(number: int, name: str, seconds: float, precision: str = "float32") -> train.Measurement:
    """100 images, 3 epochs; the first one takes twice as long as the others."""
    ends = () if name == "stock" else (seconds / 2, seconds * 3 / 4, seconds)
    work = {"compute": 6.0, "exchange": 1.5, "input": 0.5} if name in ("ours", "auto", "epoch") else {}
    return train.measurement(number, name, Fit(precision, seconds, ends, 2.5, work), 100, 3)


def test_the_first_epoch_does_not_count_for_the_steady_state() -> None:
    one = _measured(1, "ours", 10.0)
    assert one.images_per_second_fit == pytest.approx(30)
    assert one.images_per_second_steady == pytest.approx(200 / 5)


def test_shares_add_up_and_a_step_has_no_input() -> None:
    one = _measured(1, "ours", 10.0)
    assert (one.share_compute, one.share_exchange, one.share_input) == (0.75, 0.1875, 0.0625)
    assert one.share_outside_compute == 0.25
    assert one.share_exchange_of_step == pytest.approx(0.2)


def test_stock_elephas_tells_neither_epochs_nor_shares() -> None:
    one = _measured(1, "stock", 10.0)
    assert one.images_per_second_fit == pytest.approx(30)
    assert one.images_per_second_steady is one.share_compute is one.share_exchange_of_step is None


def test_spread() -> None:
    assert benchmark.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert benchmark.spread([4.0, 1.0])["median"] == 2.5


def test_ratios_are_taken_within_each_round() -> None:
    # The whole machine is slow in the second round: the ratio does not see it.
    seconds = {"ours": (10, 30, 12), "plain": (20, 60, 18), "stock": (40, 120, 60)}
    taken = [
        _measured(number, name, values[number - 1])
        for number in (1, 2, 3)
        for name, values in seconds.items()
    ]
    found = {(one["of"], one["to"]): one for one in train.ratios(taken)}
    assert set(found) == {("ours", "plain"), ("ours", "stock")}
    assert found["ours", "plain"]["speed"] == STEADY
    assert found["ours", "plain"]["rounds"] == pytest.approx([2, 2, 1.5])
    assert found["ours", "plain"]["median"] == pytest.approx(2)
    assert found["ours", "stock"]["speed"] == WHOLE
    assert found["ours", "stock"]["rounds"] == pytest.approx([4, 4, 5])


def test_steady_states_of_different_precisions_are_not_compared() -> None:
    taken = [_measured(1, "auto", 10.0), _measured(1, "plain-bfloat16", 20.0, "mixed_bfloat16")]
    assert train.ratios(taken) == []
    taken[0] = _measured(1, "auto", 10.0, "mixed_bfloat16")
    assert [one["rounds"] for one in train.ratios(taken)] == [[pytest.approx(2)]]


def test_a_round_without_one_of_the_two_has_no_ratio() -> None:
    taken = [_measured(1, "ours", 10.0), _measured(1, "plain", 20.0), _measured(2, "ours", 10.0)]
    assert [len(one["rounds"]) for one in train.ratios(taken)] == [1]


def test_report_shows_every_contestant_and_ratio() -> None:
    names = ("ours", "plain", "stock", "epoch")
    taken = [_measured(number, name, 10.0 * number) for number in (1, 2) for name in names]
    text = train.report(train.summary(SETTING, taken))
    lines = [line.split() for line in text.splitlines()]
    assert ["ours", "float32", "30", "20", "40", "22", "15", "30"] in lines
    assert ["stock", "float32", "-", "-", "-", "22", "15", "30"] in lines
    assert ["epoch", "75.0%", "18.8%", "6.2%", "25.0%", "20.0%"] in lines
    assert ["ours", "/", "plain,", "steady", "float32", "1.00", "1.00", "1.00"] in lines
    assert ["ours", "/", "stock,", "whole", "fit", "float32", "1.00", "1.00", "1.00"] in lines
    assert "32 images of 32x32, 2 epochs, 2 workers x 8 images, 2 rounds" in text


def test_report_of_plain_keras_alone_has_speeds_only() -> None:
    text = train.report(train.summary(SETTING, [_measured(1, "plain", 10.0)]))
    assert "40" in text and "ratio" not in text and "workers' time" not in text


def test_a_loss_that_is_not_finite_is_null_in_json() -> None:
    one = train.measurement(1, "plain", Fit("float32", 1.0, (0.5, 1.0), float("nan")), 10, 2)
    text = json.dumps(train.summary(SETTING, [one]), allow_nan=False)
    assert json.loads(text)["measurements"][0]["loss"] is None


def test_drawn_images_are_a_pure_function_and_have_the_mean_and_std_that_are_folded_in() -> None:
    drawn = [benchmark.draw(index, 16) for index in range(240)]
    again, label = benchmark.draw(17, 16)
    assert (again == drawn[17][0]).all() and label == 5
    pixels = np.stack([image for image, _ in drawn])
    assert pixels.dtype == np.uint8 and pixels.shape == (240, 16, 16, 3)
    assert np.isclose(pixels.mean(), benchmark.MEAN, atol=0.5)
    assert np.isclose(pixels.std(), benchmark.STD, atol=0.5)
    assert np.bincount([label for _, label in drawn]).tolist() == [20] * benchmark.NUM_CLASSES


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"num_images": 31}, OptionError, "--num-images 31 for 2 workers"),
        ({"num_workers": 3, "num_images": 48}, ClusterError, "2 free slots"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_before_anything_is_drawn(
    spark: SparkSession, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    folder = tmp_path / "data"
    with pytest.raises(error, match=words):
        train.measure_training(
            spark, Training(**{**vars(TINY), **changes}), ["ours"], rounds=1, folder=str(folder)
        )
    assert not folder.exists()


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One round of contestants, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("benchmark")
    found = train.measure_training(
        spark,
        TINY,
        MEASURED,
        rounds=1,
        folder=str(folder / "data"),
        json_file=str(folder / "numbers.json"),
    )
    return found, folder


@with_all
def test_every_contestant_has_numbers(run: tuple[dict[str, Any], Path]) -> None:
    found, _ = run
    has_bfloat16 = runtime.resolve_precision("auto") == "mixed_bfloat16"
    expected = set(MEASURED) - (set() if has_bfloat16 else {"plain-bfloat16"})
    taken = {one["contestant"]: one for one in found["measurements"]}
    assert set(taken) == set(found["contestants"]) == expected
    for name, one in taken.items():
        assert one["images_per_second_fit"] == pytest.approx(64 / one["seconds_fit"])
        assert 0 < one["loss"] < 20
        if name == "stock":
            assert one["images_per_second_steady"] is None
            continue
        assert len(one["ends"]) == 2 and one["ends"][1] < one["seconds_fit"]
        assert one["images_per_second_steady"] > one["images_per_second_fit"]
        if train.CONTESTANTS[name].engine == "ours":
            shares = [one["share_compute"], one["share_exchange"], one["share_input"]]
            assert all(share > 0 for share in shares) and sum(shares) == pytest.approx(1)
    assert taken["stock"]["precision"] == taken["ours"]["precision"] == "float32"
    if "auto" in taken:
        assert taken["auto"]["precision"] == runtime.resolve_precision("auto")


@with_all
def test_ratios_agree_with_the_numbers(run: tuple[dict[str, Any], Path]) -> None:
    found, _ = run
    taken = {one["contestant"]: one for one in found["measurements"]}
    assert {(one["of"], one["to"]) for one in found["ratios"]} >= {("ours", "plain"), ("ours", "stock")}
    for one in found["ratios"]:
        expected = taken[one["of"]][one["speed"]] / taken[one["to"]][one["speed"]]
        assert one["rounds"] == pytest.approx([expected])
        assert one["median"] == one["min"] == one["max"] == one["rounds"][0]


@with_all
def test_json_holds_what_is_returned_and_nothing_else_is_left(run: tuple[dict[str, Any], Path]) -> None:
    found, folder = run
    assert json.loads((folder / "numbers.json").read_text()) == json.loads(json.dumps(found, allow_nan=False))
    assert [path.name for path in folder.iterdir()] == ["numbers.json"]
    assert train.report(found).count("\n") > 15
