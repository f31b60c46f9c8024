"""Jobs on Kubernetes: what Spark's own client asks an API server for, and pods that are processes of this machine."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyspark
import pytest

from tests import docs, kubernetes
from tests.conftest import HANG_SECONDS, ROOT, with_all
from tests.java import QUICK_START
from tests.kubernetes import ApiServer, Node

pytestmark = [
    with_all,
    pytest.mark.skipif(sys.platform != "linux", reason="sessions of processes are ended as Linux has them"),
]

OWN_PROGRAM = """\
import sys
from pathlib import Path
from pyspark import BarrierTaskContext
from seedlings_spark.cluster import session

spark = session.build("own")
session.require_slots(spark, 2)

def place(rows):
    import seedlings_spark
    BarrierTaskContext.get().barrier()
    yield seedlings_spark.__file__, sys.executable

settings = dict(spark.sparkContext.getConf().getAll())
found = spark.sparkContext.parallelize(range(2), 2).barrier().mapPartitions(place).collect()
print(sorted(found), Path("travels.txt").read_text(), session.driver_addresses(spark))
print(settings["spark.network.crypto.cipher"], session.overhead_in_words(spark))
assert settings["spark.network.crypto.enabled"] == "true"
spark.stop()
sys.exit(73)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    try:
        kubernetes.fetch_jars()
    except kubernetes.NoServerError as error:
        pytest.skip(str(error))
    with ApiServer(tmp_path_factory.mktemp("kubernetes")) as server:
        yield server


class Client:
    """Somebody who submits jobs.

    Args:
        server: To which.
        folder: Of this somebody; what a pod is to have travels over a folder in it.
    """

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.uploads = folder / "uploads"
        self.uploads.mkdir()
        (folder / "conf").mkdir()
        node = {
            "spark.kubernetes.driver.master": server.address,
            "spark.kubernetes.container.image": "plants:1",
        }
        quick = {"spark.executor.extraJavaOptions": QUICK_START, "spark.blockManager.port": "0"}
        lines = [f"{name} {value}\n" for name, value in (node | quick).items()]
        (folder / "conf" / "spark-defaults.conf").write_text("".join(lines))

    @contextlib.contextmanager
    def start(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """Call the script; it does not survive this context."""
        with subprocess.Popen(
            command,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("PYSPARK")},
                "SEEDLINGS_PYTHON": sys.executable,
                "SPARK_CONF_DIR": str(self.folder / "conf"),
                "SPARK_LOCAL_IP": "127.0.0.1",
            },
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as job:
            try:
                yield job
            finally:
                job.terminate()  # which the script passes on to spark-submit

    def uploaded(self, uri: str) -> Path:
        """A file that has travelled, in the folder where it was laid."""
        path = Path(uri.removeprefix("file://"))
        assert path.is_relative_to(self.uploads)
        return path


@pytest.fixture
def client(server: ApiServer, tmp_path: Path) -> Iterator[Client]:
    yield Client(server, tmp_path)
    server.clear()


def properties(text: str) -> dict[str, str]:
    """Of a file as Java writes it."""
    lines = [line.replace("\\", "").partition("=") for line in text.splitlines() if not line.startswith("#")]
    return {name: value for name, _, value in lines}


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


def wait_for(job: subprocess.Popen[str], found: Any) -> Any:
    """What a function finds while a job is under way."""
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        if what := found():
            return what
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_drivers_pod_is_as_our_settings_say_and_its_exit_code_is_the_scripts(
    client: Client, server: ApiServer
) -> None:
    (client.folder / "o.toml").write_text("[train]\nepochs = 2\n")
    instead = {
        "./spark-submit.sh": str(ROOT / "spark-submit.sh"),
        "k8s://https://HOST:6443": f"k8s://{server.address}",
        "namespace=plants": "namespace=default",
        "s3a://plants/uploads": f"file://{client.uploads}",
    }
    command = docs.command("docs/kubernetes.md", "Run a job", instead).rstrip("\n")
    with client.start(*shlex.split(command.replace("\\\n", "")), "--config", "o.toml") as job:
        pod = wait_for(job, server.driver)
        (container,) = pod["spec"]["containers"]
        (volume,) = [each["configMap"] for each in pod["spec"]["volumes"] if "configMap" in each]
        settings = properties(wait_for(job, lambda: server.config_map(volume["name"]))["spark.properties"])
        server.report(pod, 73)
        _, words = job.communicate(timeout=HANG_SECONDS)
    name = pod["metadata"]["name"]
    assert job.returncode == 73, words
    assert words.endswith(
        f"the job ended with exit code 73; its own words: kubectl logs --namespace default {name}\n"
    )

    assert container["image"] == "REGISTRY/seedlings-spark:4.1" and pod["spec"]["serviceAccount"] == "spark"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert container["resources"]["limits"]["memory"] == f"{1024 + 3072}Mi"
    runner = ("--class", "org.apache.spark.deploy.PythonRunner")
    begin = ["driver", "--properties-file", "/opt/spark/conf/spark.properties", *runner]
    assert container["args"][: len(begin)] == begin
    program, *arguments = container["args"][len(begin) :]
    assert client.uploaded(program).read_text() == (ROOT / "jobs" / "train.py").read_text()
    assert arguments[:2] == ["--num-workers", "8"] and arguments[-2:] == ["--config", "o.toml"]
    assert arguments[arguments.index("--run") + 1] == "s3a://plants/runs/7"
    assert client.uploaded(settings["spark.submit.pyFiles"]).name == "seedlings_spark.zip"
    assert client.uploaded(settings["spark.files"]).read_text() == "[train]\nepochs = 2\n"
    inside = variables(container)
    assert (inside["LC_ALL"], inside["PYTHONUTF8"]) == ("C.UTF-8", "1")
    assert not [name for name in inside if "PYTHON" in name and name != "PYTHONUTF8"]
    assert settings["spark.executor.instances"] == "8" and settings["spark.executor.memoryOverhead"] == "3g"
    assert settings["spark.authenticate"] == "true"
    assert settings["spark.dynamicAllocation.enabled"] == "false"
    assert sys.prefix not in json.dumps([pod, settings])
    assert not [each for each in settings if "secret" in each]


def test_a_job_runs_in_pods_which_get_the_package_and_files_and_a_secret_of_their_own(
    client: Client, server: ApiServer, free_port: int
) -> None:
    (client.folder / "own.py").write_text(OWN_PROGRAM)
    (client.folder / "travels.txt").write_text("by its name")
    uploads = ("--conf", f"spark.kubernetes.file.upload.path=file://{client.uploads}")
    cluster = (
        str(ROOT / "spark-submit.sh"),
        "--master",
        f"k8s://{server.address}",
        "--deploy-mode",
        "cluster",
    )
    options = ("--num-executors", "2", "--conf", f"spark.driver.port={free_port}", "--files", "travels.txt")
    cipher = "AES/GCM/NoPadding"
    if pyspark.__version__ == "4.0.0":  # SPARK-56227
        cipher = "AES/CTR/NoPadding"
        options += ("--conf", f"spark.network.crypto.cipher={cipher}")
    with (
        Node(server, client.folder / "pods", kubernetes.variables_of_image()) as node,
        client.start(*cluster, *uploads, *options, "own.py") as job,
    ):
        executors: dict[str, Any] = {}
        while job.poll() is None:
            pods = {each["metadata"]["name"]: each for each in node.look()}
            executors |= {name: pod for name, pod in pods.items() if "-exec-" in name}
            time.sleep(0.1)
        _, words = job.communicate()
        driver = node.said(next(name for name in node.names() if name.endswith("-driver")))
        of_executors = {name: node.said(name) for name in node.names() if "-exec-" in name}
    assert job.returncode == 73, (words, driver, of_executors)
    package, python = str(client.folder / "pods"), sys.executable
    assert "by its name ('127.0.0.1', '127.0.0.1')" in driver
    assert driver.count("seedlings_spark.zip/seedlings_spark/__init__.py") == 2 and driver.count(python) == 2
    assert package in driver and len(executors) == 2
    assert f"{cipher} 3,072 MiB for 1 Python process of an executor" in driver

    secrets = set()
    for pod in executors.values():
        (container,) = pod["spec"]["containers"]
        assert container["image"] == "plants:1" and container["args"] == ["executor"]
        assert container["resources"]["limits"]["memory"] == f"{1024 + 3072}Mi"
        inside = variables(container)
        assert (inside["LC_ALL"], inside["PYTHONUTF8"]) == ("C.UTF-8", "1")
        secrets.add(inside.pop("_SPARK_AUTH_SECRET"))
        assert not [each for each in inside.values() if secrets & {each}]
    assert len(secrets) == 1 and len(secrets.pop()) >= 32
