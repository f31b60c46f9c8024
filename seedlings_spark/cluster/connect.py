"""Sessions of Spark Connect: Spark's driver is another process, and reached over gRPC.

There is no JVM for us to call, no accumulator, and no environment of workers to set. What transforms tables works all
the same; what has to be reached by workers, as the parameter server of a training, does not.
"""

import re
import tempfile
from pathlib import Path
from typing import Any
from weakref import WeakSet

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark.cluster import environment
from seedlings_spark.errors import ClusterError

_PACKAGE = Path(__file__).parents[1]
_supplied: "WeakSet[Any]" = WeakSet()


def is_connect(spark: SparkSession) -> bool:
    """Whether a session is one of Spark Connect."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def refuse(spark: SparkSession, what: str, why: str = "workers connect to it") -> None:
    """Refuse what needs a driver of its own.

    Args:
        spark: The session.
        what: That.
        why: What the driver is for.

    Raises:
        ClusterError: The session is one of Spark Connect.
    """
    if is_connect(spark):
        raise ClusterError(
            f"{what} on a session of Spark Connect",
            f"one whose driver is this process, since {why}",
            "Start it by spark-submit, or with SparkSession.builder.master(...) in place of remote(...)",
        )


def supply(spark: SparkSession) -> None:
    """Give the Python workers of a session of Spark Connect this package, once; spark-submit does so for others.

    All else that a Python worker needs, as the packages that decode and predict, has to be installed where it runs.
    """
    if not is_connect(spark) or spark in _supplied:
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "seedlings_spark.zip"
        environment.zip_package(_PACKAGE, archive)
        spark.addArtifacts(str(archive), pyfile=True)
    _supplied.add(spark)


def has_python_class(rows: DataFrame) -> bool:
    """Whether a column of a table on Spark Connect, at any depth, is of a class that the table brings along.

    Asked of the server, in words: what asks for the schema itself, as `rows.columns` does, unpickles such a class.
    """
    table: Any = rows
    client = table.sparkSession.client
    described = client._analyze(method="tree_string", plan=table._plan.to_proto(client), level=None)
    # As Spark's PythonUserDefinedType is called; the class of a library of the server has that class' name.
    return re.search(r": pythonuserdefined\b", str(described.tree_string)) is not None


def num_slots(spark: SparkSession) -> int:
    """How many partitions Spark makes where nobody says how many: the cores of its executors, by default."""
    return int(spark.range(1 << 16).select(F.spark_partition_id()).distinct().count())


def application_id(spark: SparkSession) -> str:
    """What Spark calls the application of a session; of Spark Connect the session."""
    session: Any = spark  # of which only that of Spark Connect has an id
    return f"connect-{session.session_id}" if is_connect(spark) else str(spark.sparkContext.applicationId)
