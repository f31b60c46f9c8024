"""Scoring on a session of Spark Connect: a real server, which is another process without this package."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyspark
import pytest
from keras import layers
from pyspark.sql import SparkSession

from seedlings_spark import files, images
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.models.store import ModelStore
from seedlings_spark.workflow import publication
from tests import docs, hostile
from tests.conftest import HANG_SECONDS
from tests.pictures import png, write

pytest.importorskip("grpc_status", reason="needs pip install 'seedlings-spark[connect]'")
CLASSES = ["Maize", "Rye", "Wheat"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(free_port: int, tmp_path: Path) -> Iterator[str]:
    """The address of a server, whose workers run with this Python."""
    home, log = Path(pyspark.__file__).parent, tmp_path / "server.log"
    settings = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": free_port,
        "spark.ui.enabled": "false",
        "spark.local.dir": tmp_path / "spark",
    }
    options = [part for name, value in settings.items() for part in ("--conf", f"{name}={value}")]
    server = "org.apache.spark.sql.connect.service.SparkConnectServer"
    command = [
        home / "bin" / "spark-submit",
        "--master",
        "local[2]",
        "--class",
        server,
        *options,
        "spark-internal",
    ]
    unknown = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {
        **unknown,
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_HOME": str(home),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=output, stderr=output, cwd=tmp_path
        )
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", free_port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield f"sc://127.0.0.1:{free_port}"
    finally:
        process.kill()
        process.wait()


def test_predictions_are_those_of_a_session_with_a_jvm(
    spark: SparkSession, server: str, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(2)
    network = keras.Sequential(
        [keras.Input((9, 9, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3, activation="softmax")]
    )
    network.save(tmp_path / "network.keras")
    store = ModelStore(files.qualify(str(tmp_path / "store")), "seedlings")
    publication.import_network(store, str(tmp_path / "network.keras"), CLASSES, aspect="crop", promote=True)
    pictures = [png(number, 12, 15) for number in range(20)]
    for number, content in enumerate(pictures):
        write(tmp_path / "images", f"{number % 3}/{number}.png", content)
    write(tmp_path / "images", "broken.png", pictures[0][:80])
    pixels = [images.decode(each, (9, 9), aspect="crop") for each in pictures]
    rows = [(number, bytearray(each.tobytes())) for number, each in enumerate(pixels)]
    spark.createDataFrame(rows, "number int, image binary").write.parquet(str(tmp_path / "pixels"))

    mark = tmp_path / "was here"
    hostile.write_tables_with_a_class(tmp_path, mark)
    # The photographs of one folder, in the place of those of a bucket.
    paths = {"/nfs/store": f"{tmp_path}/store", "s3a://plants/photos": f"{tmp_path}/images/0"}
    paths |= {"sc://HOST:15002": server, "s3a://plants/species": f"{tmp_path}/species"}
    program = docs.command("docs/clusters.md", "With Spark Connect", paths, "python")
    command = [
        sys.executable,
        ROOT / "tests" / "spark" / "connect_client.py",
        server,
        tmp_path,
        tmp_path / "images",
    ]
    ran = subprocess.run(
        [*map(str, command), json.dumps(CLASSES), program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])

    model = SeedlingsModel.from_network(network, CLASSES)
    model.use_onnx()
    here = model.transform(spark.read.parquet(str(tmp_path / "pixels"))).orderBy("number").collect()
    expected = [[row.predicted_species, row.probability.tolist()] for row in here]
    assert found["transform"] == expected
    of_keras = network.predict(np.stack(pixels), verbose=0)
    assert np.allclose([probabilities for _, probabilities in expected], of_keras, atol=1e-5)

    def number_of(path: str) -> int:
        return int(path.rpartition("/")[2].partition(".")[0])

    assert found["rejected"] == {"truncated": 1} and len(found["score"]) == 20
    for path, (species, probabilities) in found["score"].items():
        assert [species, probabilities] == expected[number_of(path)]
    of_sql = {path: details for path, details in found["sql"].items() if not path.endswith("broken.png")}
    assert len(of_sql) == 20 and len(found["sql"]) == 21
    for path, details in of_sql.items():
        assert [details["predicted_species"], details["probabilities"]] == expected[number_of(path)]
    written = spark.read.parquet(str(tmp_path / "species")).collect()
    assert len(written) == 7  # 0, 3, ..., 18
    assert {species for _, species in written} == {expected[number][0] for number in range(0, 20, 3)}
    assert len(found["hostile"]) == 2 and all(
        "a column of a Python class" in each for each in found["hostile"]
    )
    assert not mark.exists()
    assert found["fit"].startswith("training on a session of Spark Connect. Expected one whose driver")
