"""A version as a model of MLflow: its flavour `python_function`, for a registry, a server or Spark."""

import json
import os
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import images
from seedlings_spark.errors import ClusterError
from seedlings_spark.exports import card
from seedlings_spark.exports.source import Source
from seedlings_spark.models import engines

_MODEL = Path(__file__).with_name("mlflow.txt")
_FOLDER = "model"
# What the model itself imports, as it was verified.
_REQUIREMENTS = ("numpy", "onnxruntime", "pandas", "pillow")

TAKES = "a table with the column `image_bytes`, binary: whole image files"
GIVES = "a table with `predicted_species` and `probabilities`, a list of {num_classes} in the order of `labels.txt`"
VERIFIED_BY = "MLflow {mlflow-skinny}, loaded again by `mlflow.pyfunc`, from PNG files of the pixels"
USE = """\
    import mlflow

    of_mlflow = "predicted_species string, probabilities array<double>"
    species = mlflow.pyfunc.spark_udf(spark, "file:///PATH/model", result_type=of_mlflow)
    files.select(species("content"))  # of spark.read.format("binaryFile")

To register it, log the folder `model` with a run (`mlflow.log_artifacts("model", "model")`) and register that
(`mlflow.register_model("runs:/RUN/model", "{name}")`). A server is `mlflow models serve -m model`.
"""


def write(source: Source, folder: Path) -> None:
    """Write MLflow's folder, with signature, input example and the packages that it needs.

    Raises:
        ClusterError: MLflow is not installed.
    """
    mlflow = imported()
    import pandas as pd

    version = source.version
    schema = mlflow.types.Schema([mlflow.types.ColSpec("binary", "image_bytes")])
    outputs = [
        mlflow.types.ColSpec("string", "predicted_species"),
        mlflow.types.ColSpec(mlflow.types.schema.Array("double"), "probabilities"),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        template = string.Template(_MODEL.read_text(encoding="utf-8"))
        known = {"name": version.name, "version": version.version}
        (place / "classifier.py").write_text(template.substitute(known), encoding="utf-8")
        code = card.preprocessing(version)
        (place / card.PREPROCESSING).write_text(code, encoding="utf-8")
        (place / "classes.json").write_text(json.dumps(version.classes), encoding="utf-8")
        (place / "network.onnx").write_bytes(source.onnx)
        mlflow.pyfunc.save_model(
            str(folder / _FOLDER),
            python_model=str(place / "classifier.py"),
            artifacts={
                "network": str(place / "network.onnx"),
                "classes": str(place / "classes.json"),
                "preprocessing": str(place / card.PREPROCESSING),
            },
            signature=mlflow.models.ModelSignature(schema, mlflow.types.Schema(outputs)),
            input_example=pd.DataFrame({"image_bytes": [images.encode_png(source.samples.pixels[0])]}),
            pip_requirements=[f"{each}=={engines.version(each)}" for each in _REQUIREMENTS],
        )


def run(folder: Path, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities of what was written, loaded by MLflow."""
    import pandas as pd

    loaded = imported().pyfunc.load_model(str(folder / _FOLDER))
    found = loaded.predict(pd.DataFrame({"image_bytes": [images.encode_png(row) for row in rows]}))
    return np.array(found["probabilities"].tolist(), np.float32)


def imported() -> Any:
    """MLflow, or an error that says how to have it.

    Raises:
        ClusterError: It is not installed.
    """
    # It would report how it is used to its makers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow
        import mlflow.pyfunc
        import mlflow.types.schema
    except ImportError as error:
        raise ClusterError(
            f"no mlflow in this Python ({error})",
            "the extra `mlflow` of this package",
            "Install seedlings-spark[mlflow]",
        ) from None
    return mlflow
