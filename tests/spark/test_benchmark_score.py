"""The benchmarks of scoring and of scaling: a tiny run of each."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from seedlings_spark import benchmark, images
from seedlings_spark.benchmark import scale, score
from seedlings_spark.benchmark.train import Training
from seedlings_spark.errors import InputError, OptionError
from tests.conftest import with_all

TINY = score.Scoring(
    num_images=16, image_size=32, network="plain", precision="float32", stock_images=8, memory_images=(8, 16)
)
# Each starts TensorFlow in processes of its own, some of them several times: all with `test --all`.
SCORERS = (
    ("limit", "png", "table", "transform", "udf", "stock", "tf.data")
    if os.environ.get("SEEDLINGS_TEST_ALL")
    else ("limit", "png")
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of other sizes, in folders, one of which has a space and an accent in its name."""
    folder = tmp_path_factory.mktemp("given") / "images"
    for name, size in (("Maize/a b é.png", 40), ("Maize/2.png", 224), ("Charlock/3.png", 300)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
        (folder / name).write_bytes(images.encode_png(pixels))
    return folder


@pytest.fixture(scope="module")
def run(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, pictures: Path
) -> tuple[dict[str, Any], Path]:
    """One round of contestants over given pictures, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("benchmark")
    found = score.measure_scoring(
        spark,
        replace(TINY, images=pictures.as_uri()),
        SCORERS,
        rounds=1,
        folder=str(folder / "data"),
        json_file=str(folder / "numbers.json"),
    )
    return found, folder


@with_all
def test_every_contestant_is_measured(run: tuple[dict[str, Any], Path]) -> None:
    found, _ = run
    taken = {one["contestant"]: one for one in found["measurements"]}
    assert set(taken) == set(found["contestants"]) == {*SCORERS, "limit-forward"}
    for name in {"png", "table", "transform", "udf"} & set(SCORERS):
        assert taken[name]["images_per_second_whole"] == pytest.approx(16 / taken[name]["seconds"]["whole"])
        assert set(taken[name]["seconds"]) == {"whole", "small", "large"}
    limit = taken["limit"]["seconds"]
    cores = found["setting"]["cores"]
    both = limit["decode"] + limit["forward"]
    assert taken["limit"]["images_per_second_steady"] == pytest.approx(cores / both)
    assert taken["limit-forward"]["images_per_second_steady"] == pytest.approx(cores / limit["forward"])
    assert all(taken[name]["precision"] == "float32" for name in {"stock", "tf.data"} & set(SCORERS))


@with_all
def test_a_workers_memory_is_measured(run: tuple[dict[str, Any], Path]) -> None:
    found, _ = run
    peaks = found["memory"]["peak_bytes"]
    assert set(peaks) == {"8", "16"} and all(2**26 < peak < 2**29 for peak in peaks.values())


@with_all
def test_json_holds_what_is_returned_and_nothing_else_is_left(run: tuple[dict[str, Any], Path]) -> None:
    found, folder = run
    assert json.loads((folder / "numbers.json").read_text()) == json.loads(json.dumps(found, allow_nan=False))
    assert [path.name for path in folder.iterdir()] == ["numbers.json"]
    assert "ours: score, from PNG files" in score.report(found)


def test_spark_s_udf_predicts_what_keras_predicts(spark: SparkSession, tmp_path: Path) -> None:
    from seedlings_spark.models import networks

    network = benchmark.network("plain", 32)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    rows = np.array([image.tobytes() for image in pixels], object)
    expected = network(pixels.astype("float32"), training=False).numpy()
    for tuned in (False, True):
        predict = score._make_predict(networks.to_bytes(network), "float32", tuned=tuned)
        assert np.allclose(predict(rows), expected, atol=1e-5)


@with_all
def test_given_pictures_are_brought_to_one_size_and_repeated(run: tuple[dict[str, Any], Path]) -> None:
    assert run[0]["setting"]["pictures"] == "3 different ones given"


def test_a_picture_that_is_none_is_named(spark: SparkSession, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png"):
        score._as_picture(broken.as_uri(), None)


def test_a_folder_that_python_cannot_read_is_refused(spark: SparkSession) -> None:
    with pytest.raises(OptionError, match="--output"):
        score.measure_scoring(spark, TINY, ["limit"], rounds=1, folder="hdfs://127.0.0.1:1/benchmark")


@with_all
def test_scaling_is_measured_as_far_as_there_are_slots(spark: SparkSession, tmp_path: Path) -> None:
    training = Training(
        num_images=32,
        image_size=32,
        epochs=2,
        num_workers=2,
        batch_size=8,
        network="plain",
        precision="float32",
    )
    found = scale.measure_scaling(
        spark, training, rounds=1, folder=str(tmp_path / "data"), json_file=str(tmp_path / "numbers.json")
    )
    assert [one["num_workers"] for one in found["measurements"]] == [1, 2]
    assert all(value > 0 for name, value in found["costs"].items() if name != "exchange")
    assert found["costs"]["state_bytes"] == 3 * found["costs"]["vector_bytes"]  # Adam keeps two moments
    assert json.loads((tmp_path / "numbers.json").read_text()) == json.loads(
        json.dumps(found, allow_nan=False)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.json"]
    assert "a ring of the" in scale.report(found)


def test_too_few_images_for_the_most_workers_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    training = Training(
        num_images=31,
        image_size=32,
        epochs=2,
        num_workers=2,
        batch_size=8,
        network="plain",
        precision="float32",
    )
    with pytest.raises(OptionError, match="--num-images 31 for 2 workers"):
        scale.measure_scaling(spark, training, rounds=1, folder=str(tmp_path / "data"))
