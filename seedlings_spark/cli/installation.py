"""Where the parts of this installation are: the jobs, Spark's settings, Python, Spark, Java.

In a checkout `jobs` and `conf` stand beside the package, in an installed wheel inside of it.
"""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from seedlings_spark import config, display
from seedlings_spark.cluster import environment
from seedlings_spark.errors import ClusterError, OptionError

_PACKAGE = Path(__file__).parents[1]
_JAVA = 17
# Where a shell looks for programs that was given no PATH.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclasses.dataclass(frozen=True)
class Installation:
    """An installation, as a job is started from it.

    Args:
        home: The folder with `jobs` and `conf`.
        python: Path of the interpreter that driver and workers of this machine run with.
        package: The folder `seedlings_spark`.
    """

    home: Path = _PACKAGE if (_PACKAGE / "jobs").is_dir() else _PACKAGE.parent
    python: str = sys.executable
    package: Path = _PACKAGE

    @property
    def is_checkout(self) -> bool:
        """Whether this is the repository, with its tests."""
        return self.home != self.package

    def program(self, job: str) -> str:
        """The file that spark-submit runs: of a job, or a program of one's own.

        Raises:
            OptionError: There is neither.
        """
        known = ", ".join([*config.JOBS, "test", "pack"]).replace(",", "")
        if job.endswith(".py"):
            if not Path(job).is_file() and not job.startswith("local:///"):  # of an image
                raise OptionError(
                    f"no file {job}", f"a program of your own, or one of: {known}", "Correct its path"
                )
            return job
        if job not in config.JOBS:
            see = f"See {display.command()} --help"
            raise OptionError(f"no job '{job}'", f"one of: {known}, or a FILE.py", see)
        return str(self.home / "jobs" / f"{job}.py")

    def settings(self, name: str) -> str:
        """The path of one of our files of Spark's or its log's settings."""
        return str(self.home / "conf" / name)

    def spark_home(self, environment: Mapping[str, str]) -> str:
        """`SPARK_HOME`, or the Spark that the Python package brings.

        Raises:
            ClusterError: There is neither.
        """
        if given := environment.get("SPARK_HOME"):
            return given
        pyspark = find_spec("pyspark")
        if pyspark is None or not pyspark.submodule_search_locations:
            raise ClusterError(
                f"no pyspark for {self.python}", "a Spark", "Install pyspark, or set SPARK_HOME"
            )
        return pyspark.submodule_search_locations[0]

    def zip_package(self, target: Path) -> None:
        """Write the package's modules into an archive, for executors elsewhere."""
        environment.zip_package(self.package, target)


def require_java(environment: Mapping[str, str]) -> None:
    """Ask Java for its version.

    Raises:
        ClusterError: There is none, or one that is too old for Spark.
    """
    home = environment.get("JAVA_HOME", "")
    java = f"{home}/bin/java" if home else shutil.which("java", path=environment.get("PATH", _PATH)) or ""
    said = ""
    if os.access(java, os.X_OK):
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if found is None or int(found[1]) < _JAVA:
        java = f"newer Java than {found[1]}" if found else "Java"
        raise ClusterError(
            f"no {java} {f'in JAVA_HOME={home}' if home else 'on the PATH'}",
            f"Java {_JAVA}",
            f"Install it, for example with apt-get install openjdk-{_JAVA}-jre-headless, or set JAVA_HOME",
        )
