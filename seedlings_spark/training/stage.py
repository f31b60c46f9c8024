"""The Spark stage of a run's workers, in a thread of the driver.

The caller's thread stays free to be the master. The stage runs in a job group of its own, so that it can be
cancelled without touching anything else that the application does.
"""

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
from pyspark import InheritableThread
from pyspark.sql import DataFrame, Row, SparkSession

from seedlings_spark.cluster import runtime, session
from seedlings_spark.training.launcher import Ended
from seedlings_spark.training.worker import SUMMARY, TrainTask, run

_log = logging.getLogger(__name__)


class StageLauncher:
    """Workers as tasks of a Spark stage. A `launcher.Launcher`.

    Workers that meet are a barrier stage: all of them run at once or not at all, and one that fails ends the others. Of
    others, and under dynamic allocation, Spark starts one that failed again alone.

    Args:
        rows: Gives the rows of so many workers: partition r holds those of the shards of rank r.
        spark: The session.
        description: Shown in Spark's UI.
    """

    def __init__(self, rows: Callable[[int], DataFrame], spark: SparkSession, description: str) -> None:
        self._rows, self._spark, self._description = rows, spark, description

    @property
    def addresses(self) -> tuple[str, str]:
        """Where the driver listens, and by which name executors reach it."""
        return session.driver_addresses(self._spark)

    def slots(self) -> int:
        """How many tasks can run at once on the executors that there are."""
        return session.num_slots(self._spark)

    def launch(self, task: TrainTask, ended: Ended) -> "Stage":
        """Start the stage."""

        def over(rows: list[Row] | None, error: BaseException | None) -> None:
            ended([row.asDict() for row in rows or []], error)

        stage = Stage(self._spark, self._description, partial(self._table, task), over)
        stage.start()
        return stage

    @contextlib.contextmanager
    def _table(self, task: TrainTask) -> Iterator[DataFrame]:
        """The table whose `collect`, inside, runs the workers."""
        recipe = task.recipe
        row_bytes = int(np.prod(recipe.row_shape, dtype=np.int64)) * (1 if recipe.row_dtype == "uint8" else 8)
        rows = self._rows(task.num_workers)
        with session.arrow_batches(self._spark, row_bytes):
            with session.python_environment(self._spark, runtime.worker_environment(recipe.threads)):
                # Spark has no barrier stage where it allocates executors dynamically.
                is_barrier = task.is_barrier and not session.is_dynamic(self._spark)
                table = rows.mapInArrow(partial(run, task), SUMMARY, barrier=is_barrier)
            yield table


class Stage:
    """One attempt to run the workers.

    Args:
        spark: The session.
        description: Shown in Spark's UI.
        build: Makes the table whose `collect` runs the workers; entered for as long as that takes.
        ended: Called in the stage's thread when it has ended, with its rows or its error.
    """

    def __init__(
        self,
        spark: SparkSession,
        description: str,
        build: Callable[[], AbstractContextManager[DataFrame]],
        ended: Callable[[list[Row] | None, BaseException | None], None],
    ) -> None:
        self._spark = spark
        self._build = build
        self._ended = ended
        self._description = description
        self._group = f"seedlings-{uuid.uuid4().hex[:12]}"
        self._thread: Any = InheritableThread(self._run, session=spark)
        self._thread.daemon = True
        self._over = threading.Event()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Ask Spark to end the stage's tasks; `ended` is called when they are gone."""
        if not self._over.is_set():
            self._spark.sparkContext.cancelJobGroup(self._group)

    def join(self, seconds: float) -> bool:
        """Wait until it has ended, and `ended` has been called; whether it has."""
        return self._over.wait(seconds)

    def _run(self) -> None:
        rows, failure = None, None
        try:
            self._spark.sparkContext.setJobGroup(self._group, self._description, interruptOnCancel=False)
            with self._build() as table:
                rows = table.collect()
        except BaseException as error:
            failure = error
        finally:
            try:
                self._ended(rows, failure)
            finally:
                self._over.set()
