"""A run trained again, and the bits of its weights compared."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from seedlings_spark import config, corpus, display, files, reproducibility
from seedlings_spark.config import ReproduceOptions, TrainOptions
from seedlings_spark.errors import CorpusError, InputError
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.training import network as carried
from seedlings_spark.workflow import jobs, runs

_log = logging.getLogger(__name__)
REPRODUCED = "reproduced"  # folder of a run, of those that repeat it


@dataclass(frozen=True)
class Reproduced:
    """A run and its repetition.

    Args:
        original: The version that the run has published.
        repeated: That of its repetition, in a store of its own.
        arrays: Arrays of weights.
        equal: Those of them whose bits are the same.
        largest: The largest difference of two weights; infinite where the networks differ.
        differences: In what the machines and packages differ.
        environment: How to have the run's Python and packages; "" where they are those of here.
    """

    original: ModelVersion
    repeated: ModelVersion
    arrays: int
    equal: int
    largest: float
    differences: tuple[str, ...]
    environment: str = ""

    @property
    def is_same(self) -> bool:
        """Whether all weights have the same bits."""
        return self.equal == self.arrays

    def summary(self) -> list[tuple[str, object]]:
        """What `reproduce` prints at its end."""
        said = "the same bits" if self.is_same else f"weights that differ by up to {self.largest:.3g}"
        return [
            ("run", f"{self.original.name} {self.original.version}, and again"),
            ("weights", f"{said}: {self.equal:,} of {self.arrays:,} arrays are equal"),
            ("repeated in", display.Whole(self.repeated.path)),
            *[("differs", each) for each in self.differences],
            *([("as then", display.Whole(self.environment))] if self.environment else []),
        ]


def reproduce(spark: SparkSession, options: ReproduceOptions) -> Reproduced:
    """Train what a run has trained again, with the same options on the same corpus, and compare the weights.

    Args:
        spark: The session.
        options: Those of the job `reproduce`.

    Raises:
        CorpusError: The corpus has other images or labels than the run had.
        InputError: The run has published nothing, or cannot be repeated.
        StoreError: Its version is not there any more, or not as it was published.
    """
    options = config.qualified(options)
    record = runs.record(options.run)
    given, version = _asked(record, options.run), str(record["version"])
    original = ModelStore(given.store, given.name).verify(version)
    _check_corpus(record, given)
    application = str(spark.sparkContext.applicationId)
    place = options.output or files.join(options.run, REPRODUCED, application)
    again = replace(
        given,
        store=files.join(place, "store"),
        run=files.join(place, "run"),
        promote="never",
        folds=0,
        mlflow="",
    )
    differences = _differences(record)
    for each in differences:
        _log.warning("other weights may come of this: %s", each)
    trained = jobs.train(spark, again)
    repeated = ModelStore(again.store, again.name).resolve(trained.version)
    arrays, equal, largest = compared(*(_weights(each) for each in (original, repeated)))
    return Reproduced(original, repeated, arrays, equal, largest, differences, environment(record))


def compared(one: list[Any], other: list[Any]) -> tuple[int, int, float]:
    """How many arrays there are, how many of them have the same bits, and the largest difference of two values."""
    if [(each.shape, each.dtype) for each in one] != [(each.shape, each.dtype) for each in other]:
        return max(len(one), len(other)), 0, float("inf")
    pairs = list(zip(one, other, strict=True))
    equal = sum(first.tobytes() == second.tobytes() for first, second in pairs)
    away = [np.abs(first.astype(np.float64) - second).max() for first, second in pairs if first.size]
    return len(pairs), equal, float(max(away, default=0.0))


def _asked(record: dict[str, Any], run: str) -> TrainOptions:
    """The options that a run was started with."""
    if not record.get("version"):
        raise InputError(
            f"{run}, a run that has not published a version",
            "one that has ended",
            "Start it again with the same command: it goes on",
        )
    given = config.make(TrainOptions, record["options"], f"the record of {run}")
    if given.mode != "synchronous":
        raise InputError(
            f"{run}, a run in mode {given.mode}",
            "one in mode synchronous: in the others what comes first changes the weights",
            "Train with --mode synchronous what has to be repeated",
        )
    return given


def _check_corpus(record: dict[str, Any], given: TrainOptions) -> None:
    expected, found = record["corpus"]["fingerprint"], corpus.load(given.corpus).fingerprint
    if found != expected:
        raise CorpusError(
            f"{given.corpus} with the fingerprint {found[:16]}...",
            f"{expected[:16]}..., the images and labels that the run was trained on",
            "Restore that corpus from a copy, or prepare it again from the same images",
        )


def environment(record: Mapping[str, Any]) -> str:
    """How to have the Python and the packages of a run's last attempt, in words; "" where they are those of here."""
    last, now = (record.get("attempts") or [{}])[-1], reproducibility.package_versions()
    told = (last.get("versions") or {}).items()
    then = {name: each for name, each in told if each not in ("unknown", now.get(name))}
    python = then.pop("python", "")
    steps = [f"a virtual environment of Python {python or now['python']}"] if then or python else []
    if then:
        steps.append(
            f"pip install {' '.join(f'{name}=={each}' for name, each in sorted(then.items()))} in it"
        )
    return ", ".join([*steps, "SEEDLINGS_PYTHON=its Python"]) if steps else ""


def _differences(record: dict[str, Any]) -> tuple[str, ...]:
    """In what the driver's machine and packages differ from those of the run's last attempt."""
    last = (record.get("attempts") or [{}])[-1]
    now = {
        **{f"version of {name}": version for name, version in reproducibility.package_versions().items()},
        "cpu": reproducibility.cpu_model(),
        "cpu_features": list(reproducibility.cpu_features()),
    }
    then = {f"version of {name}": version for name, version in (last.get("versions") or {}).items()}
    then |= {name: last.get(name) for name in ("cpu", "cpu_features")}
    return tuple(reproducibility.differences([then, now]))


def _weights(version: ModelVersion) -> list[Any]:
    network = carried.from_bytes(files.read_bytes(version.network_path))
    return [np.asarray(each) for each in network.get_weights()]
