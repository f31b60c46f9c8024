"""A process of its own, on the Spark application of the tests, that is killed before it writes or removes something.

    python -m tests.spark.killed MOMENT PATHS OUTPUT CORPUS

calls `forget`. The moment is counted from 0; of a folder that would be removed then, one file is gone by that time.
"""

import os
import signal
import sys
from typing import Any

from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from seedlings_spark.config import ForgetOptions
from seedlings_spark.files.local import LocalPath
from seedlings_spark.workflow import forgetting


def environment(spark: SparkSession) -> dict[str, str]:
    """Variables by which such a process finds the application."""
    parameters = spark.sparkContext._gateway.gateway_parameters  # type: ignore[union-attr]
    return {
        **os.environ,
        "PYSPARK_GATEWAY_PORT": str(parameters.port),
        "PYSPARK_GATEWAY_SECRET": str(parameters.auth_token),
    }


def session() -> SparkSession:
    """That of the application, over connections of this process."""
    gateway = launch_gateway()
    jvm: Any = gateway.jvm
    context = jvm.JavaSparkContext(jvm.org.apache.spark.SparkContext.getOrCreate())
    conf = SparkConf(_jvm=jvm, _jconf=context.getConf())
    return SparkSession(SparkContext(gateway=gateway, jsc=context, conf=conf))


def watch(moment: int) -> None:
    """Let this process be killed then."""
    count = 0

    def watched(name: str) -> None:
        real = getattr(LocalPath, name)

        def done(self: LocalPath, *arguments: Any) -> Any:
            nonlocal count
            if ".lock" not in str(self._path):
                count += 1
                if count > moment:
                    if name == "delete" and self._path.is_dir():
                        next(each for each in sorted(self._path.rglob("*")) if each.is_file()).unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *arguments)

        setattr(LocalPath, name, done)

    for name in ("write_bytes", "create", "delete", "rename"):
        watched(name)


if __name__ == "__main__":
    at, paths, output, corpus = sys.argv[1:]
    spark = session()
    watch(int(at))
    forgetting.forget(spark, ForgetOptions(paths=paths, output=output, corpus=corpus))
    os._exit(0)  # what is the tests' is not stopped
