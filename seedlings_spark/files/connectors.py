"""Hadoop's connectors to object stores, which Spark does not bring: which package has one."""

import re

from seedlings_spark.errors import ClusterError
from seedlings_spark.files.paths import split

# Scheme -> group and name of the package; of Hadoop's own the version is that of Hadoop.
_PACKAGES = {
    "s3a": "org.apache.hadoop:hadoop-aws",
    "abfs": "org.apache.hadoop:hadoop-azure",
    "abfss": "org.apache.hadoop:hadoop-azure",
    "wasb": "org.apache.hadoop:hadoop-azure",
    "wasbs": "org.apache.hadoop:hadoop-azure",
}
_GOOGLE = "com.google.cloud.bigdataoss:gcs-connector"
_MISSING = re.compile(r"No FileSystem for scheme|ClassNotFoundException|NoClassDefFoundError")


def refuse_missing(path: str, error: Exception, hadoop_version: str) -> None:
    """Say which package is missing, if that is why a file system cannot be used.

    Args:
        path: On that file system.
        error: What the JVM has raised.
        hadoop_version: That Spark brings.

    Raises:
        ClusterError: It is.
    """
    if not _MISSING.search(str(error)):
        return
    scheme = split(path)[0].partition(":")[0].lower()
    if scheme in ("s3", "s3n"):
        raise ClusterError(
            f"{path}, for whose scheme {scheme}: this Spark has no file system",
            "s3a:, as Hadoop calls S3",
            f"Write s3a:{path.partition(':')[2]}",
        ) from None
    if scheme == "gs":
        package = f"{_GOOGLE} of Google, in its newest version for Hadoop {hadoop_version.partition('.')[0]}"
    elif scheme in _PACKAGES:
        package = f"{_PACKAGES[scheme]}:{hadoop_version}"
    else:
        return
    raise ClusterError(
        f"{path}, and no connector for {scheme}: on Spark's class path",
        f"the package {package}",
        f"Give {'the package' if ' ' in package else package} to --packages, before the job's name",
    ) from None
