"""A run as MLflow shows it: a real tracking server on loopback, over SQLite."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seedlings_spark import config, files, images
from seedlings_spark.errors import ClusterError, OptionError
from seedlings_spark.models.store import ModelStore
from seedlings_spark.workflow import jobs, runs, tracking
from tests.conftest import HANG_SECONDS, with_all

ALONE = {"MLFLOW_DISABLE_TELEMETRY": "true", "NO_PROXY": "127.0.0.1"}


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """A tracking server over the SQLite file and the artifacts of a folder."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "mlflow.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **ALONE},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    opener, address = urllib.request.build_opener(urllib.request.ProxyHandler({})), f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            try:
                opener.open(f"{address}/health", timeout=5).close()
                break
            except OSError:
                said = (folder / "mlflow.log").read_text()[-2000:]
                assert process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, 15)  # with its workers: the session is its own
        process.wait()


# MLflow's own, of its own models and types.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")


def test_an_address_where_nothing_answers_is_refused_before_anything_is_trained(free_port: int) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(ClusterError, match=f"--mlflow http://127.0.0.1:{free_port}, where no MLflow answers"):
        tracking.connect(f"http://127.0.0.1:{free_port}")


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(OptionError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        tracking.connect("http://somebody:secret@mlflow.example")
    assert "secret" not in str(caught.value)


@with_all
def test_a_run_and_its_evaluation_are_one_run_of_mlflow_and_its_version_is_registered(
    spark: Any, drawn_images: Path, tmp_path: Path, free_port: int
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("flask_cors", reason="mlflow-skinny has no server")
    corpus = str(tmp_path / "corpus")
    jobs.prepare(
        spark,
        config.PrepareOptions(
            images=str(drawn_images), corpus=corpus, image_size=32, split_policy="stratified"
        ),
    )
    places = {"corpus": corpus, "store": str(tmp_path / "store"), "name": "fields"}
    with server(tmp_path, free_port) as address:
        options = config.TrainOptions(**places, epochs=2, batch_size=8, mlflow=address, network="plain")
        trained = jobs.train(spark, options)
        numbers = jobs.evaluate(
            spark, config.EvaluateOptions(**places, report=str(tmp_path / "report"), mlflow=address)
        )
        client = mlflow.MlflowClient(tracking_uri=address)
        (experiment,) = [each for each in client.search_experiments() if each.name == "fields"]
        (run,) = client.search_runs([experiment.experiment_id])
        lines = files.read_text(files.join(trained.run, runs.METRICS)).splitlines()
        history = client.get_metric_history(run.info.run_id, "val_loss")
        assert [(each.step, each.value) for each in history] == [
            (line["epoch"], line["val_loss"]) for line in map(json.loads, lines)
        ]
        assert (run.info.status, run.data.params["epochs"]) == ("FINISHED", "2")
        assert run.data.metrics["test_accuracy"] == pytest.approx(numbers.accuracy)
        pages = {each.path for each in client.list_artifacts(run.info.run_id, "evaluation/test")}
        assert {"evaluation/test/index.html", "evaluation/test/metrics.json"} <= pages
        (made,) = client.search_model_versions("name = 'fields'")
        assert (made.run_id, made.tags["seedlings.version"]) == (run.info.run_id, trained.version)
        mlflow.set_tracking_uri(address)
        loaded = mlflow.pyfunc.load_model(f"models:/fields/{made.version}")
    version = ModelStore(places["store"], "fields").resolve(trained.version)
    pixels = np.random.default_rng(0).integers(0, 256, (*version.image_size, 3), dtype=np.uint8)
    found = loaded.predict(pd.DataFrame({"image_bytes": [images.encode_png(pixels)]}))
    assert len(found["probabilities"][0]) == len(version.classes)
    assert version.manifest["mlflow"] == {"uri": address, "run_id": run.info.run_id}


@with_all
def test_epochs_while_the_server_is_away_are_sent_when_it_is_back(
    tmp_path: Path, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("flask_cors", reason="mlflow-skinny has no server")
    run = files.qualify(str(tmp_path / "run"))
    about = {"options": {"epochs": 3}, "corpus": {"fingerprint": "f"}}
    runs.begin(run, about)
    lines = [
        json.dumps(
            {"epoch": epoch, "time": f"2026-01-0{epoch}T00:00:00+00:00", "loss": 1 / epoch, "bad": None}
        )
        for epoch in (1, 2, 3)
    ]
    with server(tmp_path, free_port) as address:
        client = tracking.connect(address)
        with pytest.raises(KeyError), tracking.tracked(client, run, "fields", about) as ours:
            ours.report(lines[:1])
            raise KeyError
    with pytest.raises(ClusterError, match="takes no run"), tracking.tracked(client, run, "fields", about):
        pass
    ours = tracking.Tracked(client, runs.record(run)[tracking.KEY]["run_id"])
    for count in (1, 2, 3):
        ours.report(lines[:count])
    assert caplog.text.count("MLflow takes no metrics") == 1
    with server(tmp_path, free_port):
        assert client.get_run(ours.about[tracking.KEY]["run_id"]).info.status == "FAILED"
        with tracking.tracked(client, run, "fields", about) as again:
            assert again.about == ours.about
            again.report(lines)
        ours.end("FINISHED")
        history = client.get_metric_history(ours.about[tracking.KEY]["run_id"], "loss")
    assert [(each.step, each.value) for each in history] == [(epoch, 1 / epoch) for epoch in (1, 2, 3)]
