"""The programs in README and docs, as they stand there, on drawn images and numbers."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

from seedlings_spark.corpus import synthetic
from tests import docs


@pytest.fixture(scope="module")
def done(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The README's program: where, and its variables."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("photos", "new-photos"):
        synthetic.write_corpus(folder / name, images_per_species=6, size=32)
    here = {
        '="': f'="{folder}/',
        "epochs=10": "epochs=1",
        "PrepareOptions(": "PrepareOptions(image_size=32, ",
    }
    names: dict[str, Any] = {"spark": spark}
    exec(docs.command(docs.README, "As a library", here, "python"), names)
    return folder, names


def test_the_readmes_program_does_the_jobs(done: tuple[Path, dict[str, Any]]) -> None:
    folder, names = done
    assert names["trained"].version == "v0001"
    assert names["run"].manifest["scored"] == 72
    assert 0 <= names["numbers"].accuracy <= 1 and (folder / "report" / "index.html").exists()


def test_a_version_is_a_function_of_sql(spark: SparkSession, done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    table = spark.read.format("binaryFile").option("recursiveFileLookup", True).load(str(folder / "photos"))
    table.limit(3).createOrReplaceTempView("images")
    here = {'"store"': f'"{folder}/store"', "spark.sql(": "rows = spark.sql("}
    names: dict[str, Any] = {"spark": spark}
    exec(docs.command("docs/library.md", "SQL and streams", here, "python"), names)
    found = names["rows"].collect()
    assert len(found) == 3 and all(row[1] in synthetic.SPECIES and row[2] is None for row in found)


def test_pictures_are_scored_as_they_arrive(spark: SparkSession, done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    here = {
        '"/fields"': f'"{folder}/new-photos"',
        '"store"': f'"{folder}/store"',
        '"scores"': f'"{folder}/stream"',
        '"checkpoint"': f'"{folder}/checkpoint"',
        'processingTime="5 minutes"': "availableNow=True",
    }
    names: dict[str, Any] = {"spark": spark}
    exec(docs.command("docs/scheduling.md", "As they arrive", here, "python"), names)
    names["query"].awaitTermination()
    found = names["scoring"].latest(spark, f"{folder}/stream", "").select("path", "model_version").collect()
    assert len({row.path for row in found}) == len(found) == 72
    assert {row.model_version for row in found} == {"v0001"}


def test_the_estimator_is_a_stage_of_a_pipeline(spark: SparkSession) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, 3.0, (400, 4))
    classes = np.array(["barley", "maize", "rye"])[values[:, :3].argmax(axis=1)]
    rows = [(Vectors.dense(row), str(name)) for row, name in zip(values, classes, strict=True)]
    network = [keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3, "softmax")]
    names = {"keras": keras, "model": keras.Sequential(network), "spark": spark}
    names["table"] = spark.createDataFrame(rows, ["features", "target"])
    here = {"fitted.transform": "predicted = fitted.transform", "Adam(0.001)": "Adam(0.05)"}
    exec(docs.command("docs/library.md", "An estimator", here, "python"), names)
    species = [row.predicted_species for row in names["predicted"].collect()]
    assert (np.array(species) == classes).mean() > 0.8
