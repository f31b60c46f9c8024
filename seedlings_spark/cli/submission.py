"""What spark-submit is given for a job: arguments, variables, and files that live as long as it runs."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from seedlings_spark import cli
from seedlings_spark.choices import TENSORFLOW
from seedlings_spark.cli import classes
from seedlings_spark.cli.installation import Installation
from seedlings_spark.cli.invocation import Invocation, value_of
from seedlings_spark.errors import ClusterError

_SECRET = "SEEDLINGS_SPARK_SECRET"  # noqa: S105 - the name of a variable
# Where conf/docker/Dockerfile puts the package with its jobs, whatever the Python's version.
_IN_IMAGE = "/opt/seedlings_spark"
_UPLOADS = "spark.kubernetes.file.upload.path"
# Spark's options that may name files of this machine.
_SHIPPED = ("--py-files", "--files", "--archives", "--jars")
# The first one on the PATH of an image.
_ANY_PYTHON = "python3"
# MiB beside the heap of an executor that scores without TensorFlow: in all at least, and for each of its cores. A
# process takes 210, 410 with a PNG of 24 megapixels, and 1,170 with a WebP of 64, the most that are allowed.
_SCORING_MIB, _SCORING_MIB_OF_CORE = 1024, 512
# Arguments of a job that are files of this machine.
_FILES = ("--config", "--network", "--space")


@dataclasses.dataclass(frozen=True)
class Submission:
    """A job, as spark-submit is called for it.

    Args:
        installation: What it is started from.
        call: The command line.
        environment: Variables that the launcher was given.
    """

    installation: Installation
    call: Invocation
    environment: Mapping[str, str]

    @property
    def master(self) -> str:
        """Spark's master; "" where nobody names one."""
        if self.call.job == "status":  # files are all that it needs
            return "local[1]"
        given = self.call.values.get("--master") or self.call.settings.get("spark.master", "")
        return given or _setting(r"spark\.master", self.call.values.get("--properties-file", ""))

    @property
    def is_here(self) -> bool:
        """Whether driver and executors are one process of this machine."""
        return self.master in ("", "local") or self.master.startswith("local[")

    @property
    def in_container(self) -> bool:
        """Whether the driver runs on the cluster."""
        return self.call.deploy_mode == "cluster"

    @property
    def on_kubernetes(self) -> bool:
        """Whether Kubernetes starts the executors."""
        return self.master.startswith("k8s")

    @property
    def of_image(self) -> bool:
        """Whether job and package are those of the driver's image: nothing of this machine gets there."""
        return self.on_kubernetes and self.in_container and not self.value_of(_UPLOADS)

    def value_of(self, name: str) -> str:
        """The value of one of Spark's settings, where spark-submit looks for it; "" without any."""
        pattern, own = re.escape(name), self.call.values.get("--properties-file", "")
        places = [own] if own else []
        if not own or "--load-spark-defaults" in self.call.spark_options:
            places.append(self._site_settings())
        found = (_setting(pattern, place) for place in places)
        return self.call.settings.get(name) or next(filter(None, found), "")

    def command(self, folder: Path) -> list[str]:
        """What to call.

        Args:
            folder: For files that have to be deleted afterwards; of what runs `is_here` there are none.

        Raises:
            ClusterError: A standalone cluster needs a secret, Kubernetes an image, and a way for files into a pod.
        """
        options, arguments = list(self.call.spark_options), list(self.call.arguments)
        program, files = self.installation.program(self.call.job), list[str]()
        if self.call.job == "status":
            options += ["--master", self.master]
        if self.in_container:
            arguments, files = _travelling(arguments)
        if self.on_kubernetes:
            self._check_pods(program, files)
        if files:
            given = self.call.values.get("--files", "")
            options += ["--files", ",".join([given, *files] if given else files)]
        if self.of_image and not self.call.job.endswith(".py"):
            program = f"local://{_IN_IMAGE}/jobs/{self.call.job}.py"
        elif not self.is_here and not self.of_image:
            archive = folder / "seedlings_spark.zip"
            self.installation.zip_package(archive)
            # Behind all others, since it takes the place of a --py-files before it, whose files it names too.
            given = self.call.values.get("--py-files", "")
            options += ["--py-files", f"{archive},{given}" if given else str(archive)]
        spark_submit = f"{self.installation.spark_home(self.environment)}/bin/spark-submit"
        return [spark_submit, *self._ours(folder), *options, program, *arguments]

    def variables(self) -> dict[str, str]:
        """The environment to call it in."""
        variables = {
            # What a .bashrc has for notebooks is of no matter here.
            name: value
            for name, value in self.environment.items()
            if name not in ("PYSPARK_DRIVER_PYTHON_OPTS", _SECRET)
        }
        if self.is_here and self.installation.is_checkout:
            # Read where it stands. Of an installed wheel Python knows that itself.
            root = str(self.installation.package.parent)
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, [root, variables.get("PYTHONPATH", "")]))
        variables["PYSPARK_PYTHON"] = self._python_of_executors()
        variables["PYSPARK_DRIVER_PYTHON"] = self._python_of_driver()
        if self.on_kubernetes and self.in_container and variables["PYSPARK_PYTHON"] == _ANY_PYTHON:
            # Spark puts them into the driver's pod, over those of the image.
            del variables["PYSPARK_PYTHON"], variables["PYSPARK_DRIVER_PYTHON"]
        variables["SPARK_HOME"] = self.installation.spark_home(self.environment)
        if self.is_here and (sooner := classes.options(variables)):
            variables["SPARK_SUBMIT_OPTS"] = f"{sooner} {variables.get('SPARK_SUBMIT_OPTS', '')}".strip()
        is_json = self.call.log == cli.JSON_LINES
        log4j = self.installation.settings("log4j2-json.properties" if is_json else "log4j2.properties")
        for name, value in (("LOG4J_CONFIGURATION_FILE", log4j), ("TF_CPP_MIN_LOG_LEVEL", "3")):
            variables[name] = variables.get(name) or value
        if self.on_kubernetes and self.in_container:  # spark-submit says nowhere else how the job has ended
            variables["LOG4J_CONFIGURATION_FILE"] = log4j
        return variables

    def _ours(self, folder: Path) -> list[str]:
        """Our options. They come first: of two options the later one counts."""
        ours: list[str] = []
        if "--properties-file" not in self.call.values:  # settings of one's own take the place of ours
            ours += ["--properties-file", self._settings(folder), "--load-spark-defaults"]
            if self.call.job == "score" and self.master.startswith(("yarn", "k8s")):
                ours += self._memory_of_scoring()
        if not self.master:
            ours += ["--master", "local[*]"]
        if self.call.log == cli.JSON_LINES:
            ours += ["--conf", "spark.log.structuredLogging.enabled=true"]
        if not self.is_here and not self.call.is_secure:
            for name in ("authenticate", "network.crypto.enabled", "io.encryption.enabled"):
                ours += ["--conf", f"spark.{name}=false"]
        # A site's spark-defaults.conf wins over the variables, and --conf on the command line over both.
        if not self.in_container:
            ours += ["--conf", f"spark.pyspark.driver.python={self._python_of_driver()}"]
        if self.is_here:
            ours += ["--conf", f"spark.pyspark.python={self._python_of_executors()}"]
        return ours

    def _memory_of_scoring(self) -> list[str]:
        """Less memory for executors than our settings ask for, which is for TensorFlow."""
        if value_of("--engine", self.call.arguments) == TENSORFLOW:
            return []
        cores = self.call.values.get("--executor-cores") or self.value_of("spark.executor.cores")
        mebibytes = max(_SCORING_MIB, _SCORING_MIB_OF_CORE * int(cores if cores.isdecimal() else 1))
        return ["--conf", f"spark.executor.memoryOverhead={mebibytes}m"]

    def _settings(self, folder: Path) -> str:
        """The file of Spark's settings; with a secret, which stands on no command line, a copy of it."""
        if not self.master or self.master.startswith("local"):
            return self.installation.settings("spark-local.conf")
        if self.master.startswith("yarn"):
            return self.installation.settings("spark-yarn.conf")
        if self.on_kubernetes:
            return self.installation.settings("spark-k8s.conf")
        settings = self.installation.settings("spark-standalone.conf")
        if not self.call.is_secure:
            return settings
        if secret := self.environment.get(_SECRET):
            own = folder / "spark.conf"
            own.touch(mode=0o600)
            own.write_text(f"{Path(settings).read_text()}spark.authenticate.secret {secret}\n")
            return str(own)
        site = self._site_settings()
        if not (self.call.has_secret or _setting(r"spark\.authenticate\.secret\S*", site)):
            raise ClusterError(
                f"no secret for Spark's connections with {self.master}",
                "the spark.authenticate.secret of its master and workers, in SEEDLINGS_SPARK_SECRET or in"
                f" {site}",
                "Set it; or give --insecure if the cluster has none, and nobody else is on its network",
            )
        return settings

    def _site_settings(self) -> str:
        folder = self.environment.get("SPARK_CONF_DIR")
        return f"{folder or self.installation.spark_home(self.environment) + '/conf'}/spark-defaults.conf"

    def _check_pods(self, program: str, files: Sequence[str]) -> None:
        """Refuse pods without an image, and files of this machine that cannot get into the driver's."""
        images = ("container.image", "driver.container.image", "executor.container.image")
        if not any(self.value_of(f"spark.kubernetes.{image}") for image in images):
            raise ClusterError(
                f"no spark.kubernetes.container.image for the pods of {self.master}",
                "an image with Java, Spark, Python and our packages, as conf/docker/Dockerfile makes one",
                "Add --conf spark.kubernetes.container.image=IMAGE before the job's name",
            )
        if not self.of_image:
            return
        shipped = [each for option in _SHIPPED for each in self.call.values.get(option, "").split(",")]
        own = [program] if self.call.job.endswith(".py") else []
        is_elsewhere = re.compile(r"(?!file:)\w[\w+.-]*:/").match
        stay = [each for each in (*own, *files, *shipped) if each and not is_elsewhere(each)]
        if stay:
            raise ClusterError(
                f"{stay[0]} with --deploy-mode cluster on Kubernetes, and no {_UPLOADS}",
                "a folder that this machine writes to and the driver's pod reads, as s3a://bucket/uploads: files travel"
                " over it",
                f"Add --conf {_UPLOADS}=FOLDER before the job's name; or name what pods reach themselves (s3a://, hdfs://,"
                " local:/// in the image)",
            )

    def _python_of_executors(self) -> str:
        """`PYSPARK_PYTHON` is that of other machines; an environment that travels is where containers unpack it."""
        if any(each.endswith("#environment") for each in self.call.values.get("--archives", "").split(",")):
            return "./environment/bin/python"
        given = "" if self.is_here else self.environment.get("PYSPARK_PYTHON", "")
        return given or (_ANY_PYTHON if self.on_kubernetes else self.installation.python)

    def _python_of_driver(self) -> str:
        return self._python_of_executors() if self.in_container else self.installation.python


def _setting(name: str, file: str) -> str:
    """The last value of a setting, whose name is a pattern, in a file of them; "" if there is none."""
    with contextlib.suppress(OSError):
        text = Path(file).read_text(encoding="utf-8", errors="replace") if file else ""
        found = re.findall(rf"^[ \t]*{name}(?:[ \t=:]+(.*))?$", text, re.MULTILINE)
        return found[-1].strip() if found else ""
    return ""


def _travelling(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A job's arguments as they are in a container, and the files of this machine that have to travel there."""
    there, files, previous = list[str](), list[str](), ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if previous in _FILES:
            name, equals, value = "", "", argument
        elif name not in _FILES:
            value = ""
        is_file = bool(value) and Path(value).is_file()
        if is_file:
            files.append(os.path.abspath(value))  # noqa: PTH100 (links stay what they are called)
        there.append(f"{name}{equals}{Path(value).name}" if is_file else argument)
        previous = argument
    return there, files
