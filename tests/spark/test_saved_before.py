"""What release 0.1.0 saved must load: a corpus, a version, a fitted and an unfitted pipeline, checkpoints.

The files were written by 0.1.0 from twelve drawn pictures of three species, with a tiny network (12 x 12 pixels);
`expected.json` has the probabilities that 0.1.0 gave for each of them. To make such files anew for another release:
prepare, train and save with that release, and keep what it predicts beside them.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession

from seedlings_spark import corpus, files, schema
from seedlings_spark.config import ModelsOptions
from seedlings_spark.errors import StoreError
from seedlings_spark.models.store import ModelStore
from seedlings_spark.workflow import jobs, pipeline, predicting, publication

SAVED = Path(__file__).parents[1] / "data" / "saved_by_0.1.0.zip"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved by 0.1.0")
    with zipfile.ZipFile(SAVED) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def expected(saved: Path) -> dict[str, dict[str, list[float]]]:
    return dict(json.loads((saved / "expected.json").read_text()))


def test_a_version_is_upgraded_to_one_for_onnx_runtime(
    spark: SparkSession, saved: Path, expected: dict[str, dict[str, list[float]]]
) -> None:
    store = ModelStore(f"file://{saved}/store", "seedlings")
    old = store.verify("current")
    made = publication.upgrade(store, "current", promote=False)
    assert not old.has_onnx and made.has_onnx and store.current() == old.version
    (row,) = [
        row for row in jobs.models(ModelsOptions(store=store.directory)).splitlines() if made.version in row
    ]
    assert row.split()[2] == f"{old.manifest['metrics']['val_accuracy']:.4f}"
    for key in ("corpus", "options", "image_size", "aspect", "history", "kept"):
        assert made.manifest[key] == old.manifest[key], key
    assert files.read_bytes(made.profile_path) == files.read_bytes(old.profile_path)
    images = corpus.load(f"file://{saved}/corpus").images(spark)
    model = predicting.load(made)
    assert model.stages[-1].forward_task(spark, are_pixels=True).engine == "onnxruntime"
    _check(model.transform(images), expected["version"])
    with pytest.raises(StoreError, match=r"which has network\.onnx"):
        publication.upgrade(store, made.version, promote=False)
    store.delete(made.version)


def _check(table: DataFrame, expected: dict[str, list[float]]) -> None:
    rows: list[Any] = table.select(schema.PATH, schema.PROBABILITY).collect()
    found = {"/".join(row[0].split("/")[-2:]): row[1].toArray() for row in rows}
    assert set(found) == set(expected) and len(found) == 12
    for path, probabilities in expected.items():
        np.testing.assert_allclose(found[path], probabilities, atol=1e-5, err_msg=path)


def test_a_corpus_and_a_version_load(
    spark: SparkSession, saved: Path, expected: dict[str, dict[str, list[float]]]
) -> None:
    prepared = corpus.load(f"file://{saved}/corpus")
    version = ModelStore(f"file://{saved}/store", "seedlings").verify("current")
    assert (
        version.classes == prepared.classes == ("Ambling Ribbonwort", "Brook Needletuft", "Candle Twinleaf")
    )
    images = prepared.images(spark)
    _check(predicting.load(version).transform(images), expected["version"])
    assert (
        predicting.predictions(spark, version, prepared, "test").count() == prepared.num_images("test") == 4
    )


def test_pipelines_load_and_checkpoints_go_on(
    spark: SparkSession, saved: Path, expected: dict[str, dict[str, list[float]]]
) -> None:
    prepared = corpus.load(f"file://{saved}/corpus")
    images = prepared.images(spark)
    _check(PipelineModel.load(f"file://{saved}/fitted").transform(images), expected["fitted"])
    # The third epoch, after two that 0.1.0 left in checkpoints; the fitted pipeline is of the same three.
    unfitted = Pipeline.load(f"file://{saved}/unfitted")
    estimator: Any = unfitted.getStages()[-1]
    estimator.set(estimator.checkpoint_path, f"file://{saved}/checkpoints")
    model = unfitted.fit(pipeline.training_images(spark, prepared))
    assert len(model.stages[-1].history["loss"]) == 3
    of_model: Any = model.stages[-1]
    assert of_model.summary.as_dict() == of_model.record
    saved_model: Any = PipelineModel.load(f"file://{saved}/fitted").stages[-1]
    # 0.1.0 did not count everything that is counted today; what it wrote stays as it is.
    summary = saved_model.summary.as_dict()
    assert summary == {**summary, **saved_model.record} and saved_model.hasSummary
    _check(model.transform(images), expected["fitted"])
