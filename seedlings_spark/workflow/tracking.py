"""A run of training as MLflow shows it: its options, its metrics while it trains, its version in MLflow's registry.

There is one run of MLflow for each of ours, whose record names it: an attempt that goes on writes to the same one, and
so does an evaluation of the version. What MLflow is told of the epochs are the lines of `metrics.jsonl`. Once it has
answered at the start, training neither ends with the tracking server nor waits for it long: what it has not taken is
sent again later.
"""

import contextlib
import datetime
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seedlings_spark import errors, files
from seedlings_spark.errors import ClusterError, OptionError, first_line
from seedlings_spark.exports import mlflow as of_mlflow
from seedlings_spark.exports.source import Source
from seedlings_spark.kinds import Kind
from seedlings_spark.models.store import ModelVersion
from seedlings_spark.workflow import runs

_log = logging.getLogger(__name__)

# What a record and a manifest say under this key: the tracking server, and the id of the run there.
KEY = "mlflow"
# MLflow itself would ask a server that is away for minutes, again and again.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
# After a failure as many times as long as it took pass before the next try: training is slowed by a tenth at most.
_RESTS = 10
# What MLflow takes at once.
_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 6000


def connect(uri: str) -> Any:
    """A client of a tracking server that has answered; None without a URI.

    Raises:
        ClusterError: MLflow is not installed, or nothing answers there.
        OptionError: There is a password in the URI, which manifests would keep.
    """
    if not uri:
        return None
    if "@" in urlsplit(uri).netloc:
        raise OptionError(
            "--mlflow with a password, which the records of the run would keep",
            "the address alone",
            "Leave it out there, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    mlflow = of_mlflow.imported()
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # of MLflow, of requests, of a database
        raise ClusterError(
            f"--mlflow {uri}, where no MLflow answers ({first_line(error)})",
            "a tracking server, such as http://mlflow.example:5000",
            "Start it, correct --mlflow, or leave it out",
        ) from None
    return client


class Tracked:
    """A run of MLflow; nothing happens where there is none.

    Args:
        client: As `connect` gives it.
        run_id: MLflow's id of the run.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._lines: Sequence[str] = ()
        self._sent: set[str] = set()
        self._not_before = 0.0

    @property
    def about(self) -> dict[str, dict[str, str]]:
        """What the run's record and the version's manifest say of it."""
        if self._client is None:
            return {}
        return {KEY: {"uri": self._client.tracking_uri, "run_id": self._run_id}}

    def report(self, lines: Sequence[str]) -> None:
        """Send what is not sent yet of the lines of `metrics.jsonl`; what fails is said once, and sent again later."""
        self._lines = tuple(lines)
        if self._client is None or time.monotonic() < self._not_before:
            return
        started = time.monotonic()
        waiting = [line for line in lines if line not in self._sent]
        try:
            metrics = [metric for line in waiting for metric in _metrics(json.loads(line))]
            for start in range(0, len(metrics), _MOST_METRICS):
                self._client.log_batch(self._run_id, metrics=metrics[start : start + _MOST_METRICS])
        except Exception as error:
            if not self._not_before:
                _log.warning("MLflow takes no metrics, which are sent again later (%s)", first_line(error))
            self._not_before = time.monotonic() + _RESTS * (time.monotonic() - started)
            return
        if self._not_before:
            _log.info("MLflow takes metrics again: %d epochs that it lacked are there now", len(waiting))
        self._sent.update(waiting)
        self._not_before = 0.0

    def publish(self, version: ModelVersion) -> None:
        """Register what the run has published as a model of MLflow; where that fails, it is said how to do it later."""
        if self._client is None:
            return
        self._flush()
        try:
            self._client.set_tag(self._run_id, "seedlings.version", f"{version.name} {version.version}")
            if version.kind != Kind.CLASSIFICATION:
                _log.info(
                    "%s %s is not registered in MLflow, whose model would name one species of each picture",
                    version.name,
                    version.version,
                )
                return
            with tempfile.TemporaryDirectory(prefix="seedlings-mlflow-") as scratch:
                # Its `network.onnx` was compared with Keras when it was published.
                of_mlflow.write(Source(version, None), Path(scratch))
                self._client.log_artifacts(self._run_id, scratch)
            number = _registered(self._client, self._run_id, version)
        except Exception as error:
            _log.warning(
                "%s %s is published, but not registered in MLflow (%s): models export --format mlflow makes what"
                " MLflow can register",
                version.name,
                version.version,
                first_line(error),
            )
            return
        _log.info("%s %s is version %s in MLflow's registry", version.name, version.version, number)

    def end(self, status: str) -> None:
        """Write down how the run has ended: FINISHED, FAILED or KILLED."""
        self._flush()
        try:
            self._client.set_terminated(self._run_id, status)
        except Exception as error:
            _log.warning("MLflow does not know that the run is %s (%s)", status, first_line(error))

    def _flush(self) -> None:
        """Try once more, whenever that was tried before."""
        if any(line not in self._sent for line in self._lines):
            self._not_before = min(self._not_before, time.monotonic())
            self.report(self._lines)


@contextlib.contextmanager
def tracked(client: Any, run: str, name: str, about: Mapping[str, Any]) -> Iterator[Tracked]:
    """The run of MLflow of a run of ours, which ends as that does.

    Args:
        client: As `connect` gives it.
        run: Folder of the run, which has begun.
        name: Of the model: the experiment has the same name, unless MLFLOW_EXPERIMENT_NAME says otherwise.
        about: What the run depends on.

    Raises:
        ClusterError: MLflow makes no run.
    """
    if client is None:
        yield Tracked(None, "")
        return
    known = runs.record(run).get(KEY) or {}
    try:
        if known.get("uri") == client.tracking_uri:
            run_id = str(known["run_id"])
            client.update_run(run_id, status="RUNNING")
        else:
            run_id = _created(client, name, run, about)
    except Exception as error:
        raise ClusterError(
            f"an MLflow at {client.tracking_uri} that takes no run ({first_line(error)})",
            "one in which this user may make experiments and runs",
            "See MLflow's own log, or leave out --mlflow",
        ) from None
    ours = Tracked(client, run_id)
    runs.note(run, KEY, ours.about[KEY])
    try:
        yield ours
    except BaseException as error:
        ours.end("KILLED" if errors.is_interruption(error) else "FAILED")
        raise
    ours.end("FINISHED")


def evaluated(
    client: Any, version: ModelVersion, split: str, numbers: Mapping[str, Any], report: str
) -> None:
    """Log an evaluation with the run that has trained the version, or with one of its own.

    Args:
        client: As `connect` gives it; without one nothing is done.
        version: What was evaluated.
        split: Of the corpus.
        numbers: By name; those that are no numbers are left out.
        report: Folder of the report, whose files are logged: page, numbers and plots.
    """
    if client is None:
        return
    try:
        run_id = _run_of(client, version)
        found = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
        for name, value in found.items():
            client.log_metric(run_id, f"{split}_{name}", value)
        with tempfile.TemporaryDirectory(prefix="seedlings-mlflow-") as scratch:
            for name in files.list_names(report):
                if not files.is_directory(path := files.join(report, name)):
                    files.get(path, Path(scratch) / name)
            client.log_artifacts(run_id, scratch, f"evaluation/{split}")
    except Exception as error:
        _log.warning("the evaluation is in %s, but not in MLflow (%s)", report, first_line(error))
        return
    _log.info("the evaluation is in MLflow's run %s", run_id)


def _metrics(line: Mapping[str, Any]) -> list[Any]:
    """The numbers of a line of `metrics.jsonl`, as MLflow takes them."""
    from_epoch = datetime.datetime.fromisoformat(line["time"]).timestamp()
    values = {
        name: value for name, value in line.items() if name != "epoch" and isinstance(value, int | float)
    }
    metric = of_mlflow.imported().entities.Metric
    return [
        metric(name, float(value), int(1000 * from_epoch), line["epoch"]) for name, value in values.items()
    ]


def _experiment(client: Any, name: str) -> str:
    """MLflow's id of the experiment of a model, which is made where there is none."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except Exception:  # another run may have made it meanwhile
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise


def _created(client: Any, name: str, run: str, about: Mapping[str, Any]) -> str:
    """A new run of MLflow with the options of a run of ours as its params; its id."""
    tags = {"seedlings.run": run, "seedlings.corpus": about["corpus"]["fingerprint"]}
    run_id = str(
        client.create_run(_experiment(client, name), tags=tags, run_name=files.name(run)).info.run_id
    )
    param = of_mlflow.imported().entities.Param
    options = sorted((key, str(value)[:_LONGEST_PARAM]) for key, value in about["options"].items())
    params = [param(key, value) for key, value in options]
    for start in range(0, len(params), _MOST_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])
    return run_id


def _registered(client: Any, run_id: str, version: ModelVersion) -> str:
    """The number in MLflow's registry of a version whose model the run has."""
    if not any(
        each.name == version.name for each in client.search_registered_models(f"name = '{version.name}'")
    ):
        client.create_registered_model(version.name)
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    made = client.create_model_version(
        version.name, source, run_id, tags={"seedlings.version": version.version}
    )
    return str(made.version)


def _run_of(client: Any, version: ModelVersion) -> str:
    """The run of MLflow that has trained a version; a new one where this server has none."""
    known = version.manifest.get(KEY) or {}
    if known:
        with contextlib.suppress(Exception):
            return str(client.get_run(known["run_id"]).info.run_id)
    told = f"{version.name} {version.version}"
    made = client.create_run(
        _experiment(client, version.name), tags={"seedlings.version": told}, run_name=told
    )
    client.set_terminated(made.info.run_id, "FINISHED")
    return str(made.info.run_id)
