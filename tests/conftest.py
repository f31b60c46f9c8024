"""Fixtures for all tests: one Spark session, images, the data outside of the repository."""

import contextlib
import gc
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from seedlings_spark.cli import classes
from tests import java, s3

ROOT = Path(__file__).parents[1]
# Photographs and other data that are not part of the repository; tests that need them skip without.
SHARED = ROOT.parent / "shared" / "data"
# Against hangs only: nothing that is waited for takes so long, however slow the machine is.
HANG_SECONDS = 1_800
# Of a test whose like is run every time.
with_all = pytest.mark.skipif(
    "SEEDLINGS_TEST_ALL" not in os.environ, reason="takes a minute: with test --all"
)

# By default an example that takes longer than 0.2 s fails.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

os.environ.setdefault("PYTHONHASHSEED", "0")
# For every JVM that Spark starts here.
os.environ.setdefault("SPARK_SUBMIT_OPTS", java.options())


# What is read and built before the first test stays till the end. To look through it again and again for what nothing
# leads to is most of the time that the unit tests take where memory is slow.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        gc.enable()  # the process that hands tests out reads none of them, and would only grow


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()
    starts_java = any(item.path.is_relative_to(ROOT / "tests" / "spark") for item in session.items)
    if starts_java and not session.config.option.collectonly:
        classes.make(os.environ)


def shared_data(name: str) -> Path:
    """A file or folder outside of the repository, or a skip with the reason."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not on this machine (it would be in ../shared/data)")
    return path


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A session with two cores; its Python workers import this checkout."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    if any("s3_server" in getattr(item, "fixturenames", ()) for item in request.session.items):
        with contextlib.suppress(s3.NoServerError):  # which those tests say
            os.environ["SPARK_DIST_CLASSPATH"] = f"{s3.connector()}/*"
    from seedlings_spark.cluster import session

    scratch = tmp_path_factory.mktemp("spark")
    made = session.build(
        "tests",
        {
            "spark.master": "local[2]",
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.sql.shuffle.partitions": "2",
            "spark.sql.files.openCostInBytes": "65536",
            "spark.sql.warehouse.dir": str(scratch / "warehouse"),
            "spark.local.dir": str(scratch / "local"),
            "spark.ui.showConsoleProgress": "false",
            "spark.executorEnv.PYTHONHASHSEED": "0",
            "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{ROOT / 'conf' / 'log4j2.properties'}",
        },
    )
    made.sparkContext.setLogLevel("ERROR")
    yield made
    made.stop()


@pytest.fixture
def hostile_path(tmp_path: Path) -> Path:
    """Where a folder may be made: in its name is what a URI, a shell, a glob or a decoder would take for something."""
    return tmp_path / 'it\'s a "folder" #1 a%20b+c 12:30 {a,b}[0-9]* caf\N{LATIN SMALL LETTER E WITH ACUTE}'


@pytest.fixture
def mount(spark: Any) -> Iterator[Callable[[Path], str]]:
    """Mounts a local folder on a file system that is not local, and gives its URI."""
    configuration = spark.sparkContext._jsc.hadoopConfiguration()
    keys = []

    def mounted(folder: Path) -> str:
        authority = f"test-{uuid.uuid4().hex}"  # Hadoop keeps file systems by their authority
        keys.append(f"fs.viewfs.mounttable.{authority}.link./data")
        configuration.set(keys[-1], f"file://{folder}")
        return f"viewfs://{authority}/data"

    yield mounted
    for key in keys:
        configuration.unset(key)


@pytest.fixture
def mounted(mount: Callable[[Path], str], tmp_path: Path) -> tuple[str, Path]:
    """The URI of a folder on a file system that is not local, and the local folder behind it."""
    behind = tmp_path / "behind"
    behind.mkdir()
    return mount(behind), behind


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    """An S3 server of this machine, or a skip with the reason."""
    try:
        s3.connector(), s3.gateway()
    except s3.NoServerError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("s3") / "buckets"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with s3.Server(folder, port) as server:
        yield server


@pytest.fixture
def bucket(spark: Any, s3_server: s3.Server) -> Iterator[tuple[str, Path]]:
    """The URI of a new bucket that Spark can use, and the folder behind it."""
    uri, behind = s3_server.bucket()
    with s3_server.used_by(spark, uri):
        yield uri, behind


@pytest.fixture(scope="session")
def drawn_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 drawn species with 8 images each."""
    from seedlings_spark.corpus import synthetic

    folder = tmp_path_factory.mktemp("drawn") / "images"
    synthetic.write_corpus(folder, images_per_species=8, size=48)
    return folder


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
