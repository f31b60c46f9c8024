"""What can be known of a job before Spark starts: that its places on this machine are there, and can be written to.

The driver would say the same, some twenty seconds later and at times after all the work. Only what is certainly a path
of this machine is looked at: one without a scheme may be on HDFS, by the site's settings.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seedlings_spark import choices, config, errors, files
from seedlings_spark.errors import ClusterError, CorpusError, InputError, OptionError, StorageError
from seedlings_spark.models.store import ModelStore, names
from seedlings_spark.workflow import runs

# What each job reads and what it writes to. The doctor tells of its folder itself.
_READ: dict[str, Sequence[str]] = {
    "quickstart": ("images",),
    "prepare": ("images",),
    "corpus": ("corpus", "other"),
    "explore": ("corpus",),
    "train": ("corpus",),
    "tune": ("corpus",),
    "evaluate": ("corpus", "store"),
    "score": ("images", "store"),
    "feedback": ("scores", "labels"),
    "watch": ("scores",),
    "featurize": ("images", "corpus", "store"),
    "similar": ("features",),
    "models": ("store", "corpus", "images", "scores", "labels"),
    "serve": ("store",),
    "forget": ("paths", "output", "corpus", "store"),
    "benchmark": ("images",),
    "status": ("run",),
    "reproduce": ("run",),
}
_WRITTEN: dict[str, Sequence[str]] = {
    "quickstart": ("output",),
    "prepare": ("corpus",),
    "explore": ("report",),
    "train": ("store", "run"),
    "tune": ("store", "run"),
    "evaluate": ("report",),
    "score": ("output",),
    "feedback": ("report",),
    "watch": ("report",),
    "featurize": ("output",),
    "similar": ("output",),
    "models": ("output",),
    "benchmark": ("output",),
    "forget": ("output", "corpus", "store"),
    "reproduce": ("output",),
}
# Written and deleted again to see whether a place takes it.
_OUTPUT_BYTES, _SCRATCH_BYTES = 64 * 1024, 1024 * 1024
_GLOB = re.compile(r"[*?\[{]")


def check_spark(environment: Mapping[str, str]) -> None:
    """Refuse a SPARK_HOME without Spark, or with another one than the Python package is of.

    Raises:
        ClusterError: It is so.
    """
    home = environment.get("SPARK_HOME", "")
    if not home:
        return
    remedy = "Correct SPARK_HOME, or unset it: the Python package brings a Spark of its own"
    expected = ".".join(metadata.version("pyspark").split(".")[:2])
    if not os.access(Path(home) / "bin" / "spark-submit", os.X_OK):
        raise ClusterError(f"no Spark in SPARK_HOME={home}", f"Spark {expected}", remedy)
    for jar in Path(home).glob("jars/spark-core_*.jar"):
        found = jar.stem.split("-", 2)[2]  # a platform's own may be called 4.0.2-amzn-0
        if not f"{found}.".startswith(f"{expected}."):
            raise ClusterError(f"Spark {found} in SPARK_HOME={home}", f"Spark {expected}", remedy)


def check_places(job: str, options: object, environment: Mapping[str, str], spark_options: str = "") -> None:
    """Refuse what is missing among the places that a job reads, and places that it could not write to.

    Args:
        job: Its name.
        options: Options of the job.
        environment: Variables of the process.
        spark_options: What spark-submit is given, a line each.

    Raises:
        SeedlingsError: An error of the class that the job itself would end with.
    """
    default_is_local = _default_is_local(environment, spark_options)

    def local(name: str) -> str:
        path = str(getattr(options, name, ""))
        is_here = path.lower().startswith("file:/") or bool(
            path and default_is_local and files.is_local(path)
        )
        with contextlib.suppress(ValueError):  # malformed: the driver knows all schemes, and tells it
            return files.qualify(path) if is_here else ""
        return ""

    action = getattr(options, "action", "")
    imports = action == "import"
    if action == "export" and (path := local("output")) and files.exists(path):
        raise StorageError(
            f"--output {path}, which exists", "a folder that is not there yet", "Give another --output"
        )
    for name in _READ.get(job, ()):
        path = local(name)
        if path and not imports:
            _check_read(job, name, path, options)
    for name in ("store",) if imports else _WRITTEN.get(job, ()):
        path = local(name)
        if path:
            _check_written(f"{config.flag_of(name)} {path}", files.local_path(path), _OUTPUT_BYTES)
    _check_scratch(environment, spark_options)


def _check_read(job: str, name: str, path: str, options: Any) -> None:
    place, said = files.local_path(path), f"{config.flag_of(name)} {path}"
    try:
        place.stat()
    except FileNotFoundError:
        _refuse_missing(job, name, path, options)
        return
    except OSError as error:
        raise _told(said, error) from None
    if name not in ("images", "labels", "paths") and not place.is_dir():
        raise StorageError(f"{said}, which is a file", "a folder", f"Correct {config.flag_of(name)}")
    if place.is_dir() and not os.access(place, os.R_OK | os.X_OK):
        raise _told(said, PermissionError(13, "Permission denied"))
    if name in ("corpus", "other") and not (place / "manifest.json").exists():
        raise CorpusError(
            f"{path}, which has no manifest.json",
            "a corpus that `prepare` has finished (the manifest is written last)",
            "It is half-written or something else: run prepare again with this --corpus",
        )
    if job == "train" and name == "corpus":
        _check_network(options, place)
    if name == "store":
        if job in ("models", "serve"):
            names(path)
        elif job == "forget":
            ModelStore(path, options.name).versions()
        else:
            ModelStore(path, options.name).resolve(options.model_version)
    if name == "run":
        runs.status(path)


def _check_network(options: Any, corpus: Path) -> None:
    """Refuse a network for which the corpus' images are too small, and weights that are not installed."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # the driver tells of it
        height, width = json.loads((corpus / "manifest.json").read_text())["image_size"]
        least = choices.NETWORKS.get(options.network, 0)
        if min(height, width) < least:
            raise OptionError(
                f"images of {height}x{width} pixels for --network {options.network}",
                f"at least {least}x{least}",
                "Prepare the corpus with a larger --image-size, or give another --network",
            )


def _refuse_missing(job: str, name: str, path: str, options: Any) -> None:
    if name == "images":
        if not _GLOB.search(path):
            kind = InputError if job in ("score", "benchmark", "models") else CorpusError
            raise kind(f"no folder {path}", "a folder of images, or a table of paths", "Check --images")
    elif name in ("corpus", "other"):
        raise CorpusError(
            f"no folder {path}", "a corpus that `prepare` has finished", "Run prepare, or correct --corpus"
        )
    elif name == "labels":
        raise InputError(f"no table {path}", "a .csv or .parquet table of labels", "Check --labels")
    elif name == "paths":
        raise InputError(f"no file {path}", "a text with a path on each line, or a table", "Check --paths")
    elif name in ("scores", "output"):
        check = f"Check {config.flag_of(name)}"
        raise InputError(f"no folder {path}", "the folder that score was given as --output", check)
    elif name == "features":
        raise InputError(f"no folder {path}", "a folder that featurize has made", "Check --features")
    elif name == "store" and job == "serve":
        names(path)
    elif name == "store":
        ModelStore(path, options.name).resolve("current")
    else:
        raise InputError(
            f"no folder {path}",
            "the folder of a run of train, as --run or the end of its log names it",
            "Check the path",
        )


def _check_written(said: str, place: Path, size: int) -> None:
    """Write into the place, or into the folder that it will be made in."""
    try:
        folder = place
        while True:
            try:
                folder.stat()
                break
            except FileNotFoundError:
                folder = folder.parent
        if not folder.is_dir():
            raise StorageError(
                f"{said}, where {folder} is a file", "a folder, or a name that is free", "Give another one"
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
            file.flush()
    except OSError as error:
        raise _told(said, error) from None


def _check_scratch(environment: Mapping[str, str], spark_options: str) -> None:
    """Spark takes any of its folders that works."""
    given = re.findall(r"^(?:--conf=|-c=)?spark\.local\.dir=(.*)$", spark_options, re.MULTILINE)
    folders = environment.get("SPARK_LOCAL_DIRS") or (given[-1] if given else "/tmp")  # noqa: S108 - Spark's own default
    failure: StorageError | None = None
    for folder in filter(None, folders.split(",")):
        try:
            _check_written(f"spark.local.dir {folder}", Path(folder), _SCRATCH_BYTES)
        except StorageError as error:
            failure = error
        else:
            return
    if failure is not None:
        raise StorageError(
            failure.found,
            failure.expected,
            "Free it, or give another: --conf spark.local.dir=FOLDER before the job's name",
        )


def _told(said: str, error: OSError) -> StorageError:
    known = errors.recognized(error)
    expected, remedy = (
        (known.expected, known.remedy) if known else ("a place that can be used", "Give another one")
    )
    return StorageError(f"{said} ({os.strerror(error.errno) if error.errno else error})", expected, remedy)


def _default_is_local(environment: Mapping[str, str], spark_options: str) -> bool:
    """Whether a path without a scheme is certainly one of this machine."""
    if environment.get("HADOOP_CONF_DIR") or environment.get("YARN_CONF_DIR"):
        return False
    if "fs.defaultFS" in spark_options or "--properties-file" in spark_options:
        return False
    pyspark = find_spec("pyspark")
    home = environment.get("SPARK_HOME") or next(
        iter((pyspark and pyspark.submodule_search_locations) or ()), ""
    )
    folder = Path(environment.get("SPARK_CONF_DIR") or Path(home) / "conf")
    settings = folder / "spark-defaults.conf"
    try:
        return not (folder / "core-site.xml").exists() and (
            not settings.exists() or "fs.defaultFS" not in settings.read_text(errors="replace")
        )
    except OSError:
        return False
