"""What a pipeline from elsewhere may hold: written here by hand, as an attacker would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml.param import Param, Params, TypeConverters

from seedlings_spark.errors import StoreError
from seedlings_spark.models import stages

ID = "0123abcd-0000-0000-0000-000000000000"
METADATA, DATA = f"part-00000-{ID}-c000.txt", f"part-00000-{ID}-c000.snappy.parquet"
FEATURE = "org.apache.spark.ml.feature."


class Own(Params):
    """A stage of ours."""

    labels: "Param[list[str]]" = Param(Params._dummy(), "labels", "", TypeConverters.toListString)


def check(folder: Path) -> None:
    stages.check(str(folder), {"ours.Own": Own}, {"ours.Own": ("network.keras",)})


def write(folder: Path, class_name: str, params: dict[str, Any], **more: Any) -> None:
    (folder / "metadata").mkdir(parents=True)
    content = {"class": class_name, "uid": "x", "paramMap": params, "defaultParamMap": {}, **more}
    (folder / "metadata" / METADATA).write_text(json.dumps(content) + "\n")
    (folder / "metadata" / "_SUCCESS").touch()
    (folder / "metadata" / f".{METADATA}.crc").touch()


def table(folder: Path, column: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    row = {"type": "struct", "fields": [{"name": "x", "type": column, "nullable": True, "metadata": {}}]}
    found = pa.table({"x": [1]}).replace_schema_metadata({stages._ROW_METADATA[0]: json.dumps(row)})
    pq.write_table(found, folder / DATA)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A pipeline of an indexer, a pipeline of a scaler, and a stage of ours."""
    write(
        tmp_path,
        "pyspark.ml.pipeline.PipelineModel",
        {"stageUids": ["A_1", "B-2", "c"], "language": "Python"},
    )
    write(tmp_path / "stages/0_A_1", f"{FEATURE}StringIndexerModel", {"inputCol": "a", "inputCols": ["a"]})
    table(tmp_path / "stages/0_A_1/data", {"type": "array", "elementType": "string", "containsNull": True})
    write(tmp_path / "stages/1_B-2", "org.apache.spark.ml.PipelineModel", {"stageUids": ["S"]})
    write(tmp_path / "stages/1_B-2/stages/0_S", f"{FEATURE}StandardScalerModel", {"withMean": True})
    vector = {"type": "udt", "class": "org.apache.spark.ml.linalg.VectorUDT", "sqlType": {"type": "struct"}}
    table(tmp_path / "stages/1_B-2/stages/0_S/data", vector)
    write(tmp_path / "stages/2_c", "ours.Own", {"labels": ["x"]}, history={"loss": [1.0]})
    (tmp_path / "stages/2_c/network.keras").touch()
    return tmp_path


def test_a_pipeline_as_spark_writes_it_is_taken(saved: Path) -> None:
    check(saved)


@pytest.mark.parametrize(
    ("class_name", "params"),
    [
        ("subprocess.Popen", {}),
        ("seedlings_spark.lock.Lock", {}),
        (f"{FEATURE}SQLTransformer", {"statement": "ADD JAR '/tmp/x.jar'"}),
        (f"{FEATURE}RFormulaModel", {"formula": "a ~ b"}),
        ("org.apache.spark.ml.tuning.CrossValidatorModel", {}),
        ("org.apache.spark.ml.classification.OneVsRestModel", {}),
        ("pyspark.ml.feature.StringIndexerModel", {}),
        ("pyspark.ml.connect.feature.StandardScalerModel", {}),
        ("pyspark.ml.pipeline.Pipeline", {"stageUids": []}),
        ("pyspark.ml.torch.distributor.TorchDistributor", {}),
        (f"{FEATURE}StringIndexerModel\n", {}),
        (f"{FEATURE}StringIndexerModel", {"statement": "SELECT 1"}),
        (f"{FEATURE}StringIndexerModel", {"inputCol": {"class": "x"}}),
        (f"{FEATURE}StringIndexerModel", {"inputCols": "a"}),
        (f"{FEATURE}VectorSizeHint", {"size": "1; DROP"}),
        (f"{FEATURE}ElementwiseProduct", {"scalingVec": {"class": "java.lang.Runtime"}}),
        ("ours.Own", {"path": "/etc/passwd"}),
        ("ours.Own", {"labels": "/etc/passwd"}),
        (["a", "list"], {}),
        (None, {}),
    ],
)
@pytest.mark.parametrize("place", ["paramMap", "defaultParamMap"])
def test_a_stage_or_a_param_that_is_not_known_is_refused(
    saved: Path, class_name: str, params: dict[str, Any], place: str
) -> None:
    content = {"class": class_name, "uid": "x", "paramMap": {}, "defaultParamMap": {}, place: params}
    (saved / "stages/1_B-2/stages/0_S/metadata" / METADATA).write_text(json.dumps(content))
    with pytest.raises(StoreError, match="stages/1_B-2/stages/0_S"):
        check(saved)


def _text(content: str | bytes, name: str = METADATA) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "stages/0_A_1/metadata" / name).write_bytes(data)


PLAIN = json.dumps({"class": f"{FEATURE}Tokenizer", "paramMap": {}})
EVIL = json.dumps({"class": f"{FEATURE}SQLTransformer", "paramMap": {"statement": "x"}})


@pytest.mark.parametrize(
    "change",
    [
        _text(EVIL, "part-00000"),
        _text(EVIL, f"part-00000-{ID}-c001.txt"),
        _text(PLAIN + "\n" + EVIL),
        _text(EVIL + "\r" + PLAIN),
        _text("\n" + PLAIN),
        _text(PLAIN[:-1] + f', "class": "{FEATURE}SQLTransformer"}}'),
        _text(PLAIN.encode("utf-16")),
        _text(b"\x1f\x8b", f"{METADATA}.gz"),
        _text("[" * 100_000),
        _text(""),
        lambda folder: (folder / "stages/0_A_1/metadata" / METADATA).unlink(),
        lambda folder: (folder / "stages/0_A_1/data/_common_metadata").touch(),
        lambda folder: (folder / "stages/0_A_1/data/.hidden").touch(),
        lambda folder: (folder / "stages/0_A_1/data" / "part-00000.parquet").touch(),
        lambda folder: (
            (folder / "stages/0_A_1/data/a=1").mkdir() or (folder / "stages/0_A_1/data/a=1" / DATA).touch()
        ),
        lambda folder: (folder / "stages/0_A_1/x.jar").touch(),
        lambda folder: (folder / "stages/0_A_1/network.keras").touch(),
        lambda folder: (folder / "stages/2_c").rename(folder / "stages/3_c"),
        lambda folder: write(folder / "stages/3_d", f"{FEATURE}Tokenizer", {}),
        lambda folder: (folder / "metadata" / METADATA).write_text(EVIL),
        lambda folder: (folder / "metadata" / METADATA).write_text(
            json.dumps(
                {"class": "pyspark.ml.pipeline.PipelineModel", "paramMap": {"stageUids": ["../../evil"]}}
            )
        ),
        lambda folder: (folder / "metadata" / METADATA).write_text(
            json.dumps({"class": "pyspark.ml.pipeline.PipelineModel", "paramMap": {}})
        ),
    ],
)
def test_files_other_than_those_that_spark_writes_are_refused(
    saved: Path, change: Callable[[Path], object]
) -> None:
    change(saved)
    with pytest.raises(StoreError):
        check(saved)


@pytest.mark.parametrize(
    "column",
    [
        {"type": "udt", "class": "com.example.Evil", "sqlType": "string"},
        {"type": "udt", "pyClass": "nowhere.Evil", "serializedClass": "gASVAAA=", "sqlType": "string"},
        {"type": "array", "containsNull": True, "elementType": {"type": "udt", "class": "com.example.Evil"}},
    ],
)
def test_a_table_with_a_column_of_a_class_is_refused(saved: Path, column: dict[str, Any]) -> None:
    table(saved / "stages/0_A_1/data", column)
    with pytest.raises(StoreError, match="a column of the class"):
        check(saved)
