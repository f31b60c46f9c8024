"""A real S3 server on loopback, and Hadoop's connector of the version that fits pyspark.

The server is versitygw over a folder, built by Go from its module proxy; the connector comes by Maven. Both are
fetched once for all checkouts of this user, and live outside of them.
"""

import os
import re
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark

from tests.java import CACHE, once, why_not_fetched

_GATEWAY = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
_CONNECTOR = "org.apache.hadoop:hadoop-aws"
_FETCH_SECONDS = 1_200.0  # Go and Maven say nothing that would tell how far they are
_START_SECONDS = 60.0
# Of files that a test lays into a bucket's folder itself.
_ETAGS = ("--default-etag", "laid-there")
_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>seedlings_spark</groupId><artifactId>s3-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.hadoop</groupId><artifactId>hadoop-aws</artifactId><version>{version}</version>
    </dependency>
  </dependencies>
</project>
"""


class NoServerError(Exception):
    """Why there is no S3 server on this machine."""


def hadoop_version() -> str:
    """Of the Hadoop that pyspark brings."""
    (jar,) = Path(pyspark.__file__).parent.glob("jars/hadoop-client-api-*.jar")
    found = re.fullmatch(r"hadoop-client-api-(.+)\.jar", jar.name)
    assert found is not None
    return found[1]


def connector() -> Path:
    """The folder of the connector's jars, which the first call fills.

    Raises:
        NoServerError: There is no Maven, or it could not fetch them.
    """
    folder = CACHE / "hadoop-aws" / hadoop_version()
    with once(folder) as place:
        if place is not None:
            (place / "pom.xml").write_text(_POM.format(version=hadoop_version()))
            _fetch(
                "mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={place}", folder=place
            )
    return folder


def gateway() -> Path:
    """The server's program, which the first call builds.

    Raises:
        NoServerError: There is no Go, or it could not build it.
    """
    folder = CACHE / "versitygw" / _GATEWAY.rpartition("@")[2]
    with once(folder) as place:
        if place is not None:
            _fetch("go", "install", _GATEWAY, folder=place, GOBIN=str(place))
    return folder / "versitygw"


def _fetch(program: str, *arguments: str, folder: Path, **variables: str) -> None:
    path = shutil.which(program)
    if path is None:
        raise NoServerError(f"no {program} on the PATH, for an S3 server to test with")
    why = why_not_fetched([path, *arguments], _FETCH_SECONDS, folder, **variables)
    if why:
        raise NoServerError(why)


@dataclass
class Server:
    """An S3 server over a folder; a context manager.

    Args:
        folder: In which each folder is a bucket.
        port: Of 127.0.0.1.
    """

    folder: Path
    port: int

    def __post_init__(self) -> None:
        self.access_key, self.secret_key = "tests", secrets.token_hex(16)

    def __enter__(self) -> "Server":
        keys = {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}
        self._log = (self.folder.parent / "versitygw.log").open("wb")
        self._process = subprocess.Popen(
            [
                str(gateway()),
                "--port",
                f"127.0.0.1:{self.port}",
                "--quiet",
                "posix",
                *_ETAGS,
                str(self.folder),
            ],
            env={**os.environ, **keys},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                opener.open(self.endpoint, timeout=5).close()
            except urllib.error.HTTPError:
                return self  # it wants to know who asks
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, (
                    "the S3 server does not start"
                )
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self) -> dict[str, str]:
        """Hadoop's settings of the server, without the keys."""
        return {
            "fs.s3a.endpoint": self.endpoint,
            "fs.s3a.endpoint.region": "us-east-1",
            "fs.s3a.path.style.access": "true",
        }

    def variables(self) -> dict[str, str]:
        """The keys, as the environment of a process gives them to any client of S3."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    @contextmanager
    def used_by(self, spark: Any, uri: str) -> Iterator[None]:
        """Let a session know of a bucket's server and keys."""
        settings = {key.removeprefix("fs.s3a."): value for key, value in self.settings().items()}
        settings |= {"access.key": self.access_key, "secret.key": self.secret_key}
        prefix = f"fs.s3a.bucket.{uri.removeprefix('s3a://')}."
        configuration = spark.sparkContext._jsc.hadoopConfiguration()
        for key, value in settings.items():
            configuration.set(prefix + key, value)
        try:
            yield
        finally:
            for key in settings:
                configuration.unset(prefix + key)

    def bucket(self) -> tuple[str, Path]:
        """A new bucket: its URI, and the folder that its objects are in."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        behind = self.folder / name
        behind.mkdir()
        return f"s3a://{name}", behind
