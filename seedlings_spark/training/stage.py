"""The Spark stage of a run's workers, in a thread of the driver.

The caller's thread stays free to be the master. The stage runs in a job group of its own, so that it can be
cancelled without touching anything else that the application does.
"""

import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any

from pyspark import InheritableThread
from pyspark.sql import DataFrame, Row, SparkSession

_log = logging.getLogger(__name__)


class Stage:
    """One attempt to run the workers.

    Args:
        spark: The session.
        description: Shown in Spark's UI.
        build: Makes the table whose `collect` runs the workers.
        ended: Called in the stage's thread when it has ended, with its rows or its error.
    """

    def __init__(
        self,
        spark: SparkSession,
        description: str,
        build: Callable[[], DataFrame],
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
        """Wait until it has ended; whether it has."""
        return self._over.wait(seconds)

    def _run(self) -> None:
        rows, failure = None, None
        try:
            self._spark.sparkContext.setJobGroup(self._group, self._description, interruptOnCancel=False)
            rows = self._build().collect()
        except BaseException as error:
            failure = error
        finally:
            self._over.set()
            self._ended(rows, failure)
