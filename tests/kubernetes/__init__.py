"""As much of Kubernetes as Spark needs, on this machine: an API server, and pods that are processes.

The API server is fabric8's `kubernetes-server-mock`, by the same people as the client within Spark. What takes the
place of nodes is here: a pod is a process of `conf/docker/entrypoint.sh` with the arguments and variables of its
container, the files of its config maps, and a working directory of its own. Of an image there are the variables only;
Java, Spark and Python are those of the tests. Names of services are not resolved: all addresses are 127.0.0.1.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.java import CACHE, QUICK_START, once, options, why_not_fetched

ROOT = Path(__file__).parents[2]
_PROGRAM = Path(__file__).with_name("ApiServer.java")
_FETCH_SECONDS = 1_200.0  # Maven says nothing that would tell how far it is
_NAMESPACE = "default"
_PODS = f"/api/v1/namespaces/{_NAMESPACE}/pods"
_PLACES = ("/opt/spark", "/var/data")  # Of a container, that Spark's client names
_POLITE_SECONDS = 10.0


class NoServerError(Exception):
    """Why there is no API server on this machine."""


def fetch_jars() -> Path:
    """The folder of the server's jars, which the first call fills.

    Raises:
        NoServerError: There is no Maven, or it could not fetch them.
    """
    pom = Path(__file__).with_name("pom.xml")
    folder = CACHE / "kubernetes-server-mock" / "7.4.0"
    with once(folder) as place:
        if place is not None:
            maven = shutil.which("mvn")
            if maven is None:
                raise NoServerError("no mvn on the PATH, for an API server of Kubernetes to test with")
            command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
            if why := why_not_fetched([*command, f"-DoutputDirectory={place}"], _FETCH_SECONDS):
                raise NoServerError(why)
    return folder


class ApiServer:
    """An API server; a context manager.

    Args:
        folder: For its log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def __enter__(self) -> Self:
        home = os.environ.get("JAVA_HOME")
        java = f"{home}/bin/java" if home else "java"
        self._log = (self._folder / "api-server.log").open("wb")
        self._process = subprocess.Popen(
            [java, *QUICK_START.split(), "-cp", f"{fetch_jars()}/*", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdout is not None
        self.address = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_POLITE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def pods(self) -> list[dict[str, Any]]:
        """All pods, as they are now."""
        found: list[dict[str, Any]] = self._ask("GET", _PODS)["items"]
        return found

    def driver(self) -> dict[str, Any] | None:
        """The pod of a driver, if there is one."""
        pods = self.pods()
        return next((pod for pod in pods if pod["metadata"]["labels"]["spark-role"] == "driver"), None)

    def config_map(self, name: str) -> dict[str, str]:
        """The files of a config map; none if it is not there yet."""
        maps = self._ask("GET", f"/api/v1/namespaces/{_NAMESPACE}/configmaps")["items"]
        return next((each["data"] for each in maps if each["metadata"]["name"] == name), {})

    def report(self, pod: Mapping[str, Any], exit_code: int | None = None) -> None:
        """Say of a pod that it runs, or how it has ended; nothing of one that was deleted meanwhile."""
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        now = "2026-11-29T12:00:00Z"
        state: dict[str, Any] = {"running": {"startedAt": now}}
        phase = "Running"
        if exit_code is not None:
            phase = "Failed" if exit_code else "Succeeded"
            state = {
                "terminated": {"exitCode": exit_code, "reason": phase, "startedAt": now, "finishedAt": now}
            }
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": exit_code is None,
        }
        statuses = [{**status, "restartCount": 0, "state": state}]
        ready = [{"type": "Ready", "status": str(exit_code is None)}]
        new = {
            "phase": phase,
            "podIP": "127.0.0.1",
            "conditions": ready,
            "containerStatuses": statuses,
        }
        with contextlib.suppress(urllib.error.HTTPError):  # 404
            current = self._ask("GET", f"{_PODS}/{name}")
            self._ask("PUT", f"{_PODS}/{name}/status", {**current, "status": new})

    def clear(self) -> None:
        """Forget all pods."""
        for pod in self.pods():
            with contextlib.suppress(urllib.error.HTTPError):
                self._ask("DELETE", f"{_PODS}/{pod['metadata']['name']}")

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"}, method=method
        )
        with self._open(request, timeout=60) as answer:
            return json.load(answer)


@dataclass
class Node:
    """What starts pods and ends them; a context manager that ends all.

    Args:
        server: Whose pods.
        folder: In which each pod has a folder.
        image: Variables of the image.
    """

    server: ApiServer
    folder: Path
    image: Mapping[str, str]
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._processes:
            self._end(name)

    def look(self) -> list[dict[str, Any]]:
        """Start what is new, tell what has ended, end what nobody wants any more; all pods."""
        pods = self.server.pods()
        for pod in pods:
            name = pod["metadata"]["name"]
            if name not in self._processes:
                self._start(name, pod)
            elif name not in self._ended and (code := self._processes[name].poll()) is not None:
                self._ended.add(name)
                self.server.report(pod, code if code >= 0 else 128 - code)
        for name in self._processes.keys() - {pod["metadata"]["name"] for pod in pods}:
            self._end(name)
        return pods

    def names(self) -> list[str]:
        """All pods that it has started."""
        return list(self._processes)

    def said(self, name: str) -> str:
        """What a pod has printed."""
        return (self.folder / name / "log").read_text(errors="replace")

    def _start(self, name: str, pod: dict[str, Any]) -> None:
        container, root = pod["spec"]["containers"][0], self.folder / name

        def inside(text: str) -> str:
            for place in _PLACES:
                text = text.replace(place, f"{root}{place}")
            return text

        mounts = {mount["name"]: inside(mount["mountPath"]) for mount in container["volumeMounts"]}
        maps = [volume for volume in pod["spec"]["volumes"] if "configMap" in volume]
        contents = {volume["name"]: self.server.config_map(volume["configMap"]["name"]) for volume in maps}
        if not all(contents.values()):
            return  # the client makes it after the pod, and a kubelet waits for it
        for place in mounts.values():
            Path(place).mkdir(parents=True, exist_ok=True)
        for volume in maps:
            for item in volume["configMap"].get("items", []):
                text = contents[volume["name"]][item["key"]]
                # Service names lead to the driver's address.
                lines = [
                    "spark.driver.host=127.0.0.1" if line.startswith("spark.driver.host=") else line
                    for line in text.splitlines()
                ]
                (Path(mounts[volume["name"]]) / item["path"]).write_text("\n".join(lines) + "\n")
        known = {"status.podIP": "127.0.0.1", "metadata.name": name}
        variables = {
            each["name"]: inside(each["value"])
            if "value" in each
            else known[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for each in container["env"]
        }
        work = root / "work"
        work.mkdir(parents=True)
        with (root / "log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [str(ROOT / "conf" / "docker" / "entrypoint.sh"), *map(inside, container["args"])],
                cwd=work,
                env={"PATH": os.environ["PATH"], "HOME": str(root), **self.image, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.server.report(pod)

    def _end(self, name: str) -> None:
        process = self._processes[name]
        self._ended.add(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # by the number of its session, which its children share
        process.wait()


def variables_of_image() -> dict[str, str]:
    """As conf/docker/Dockerfile sets them, but for where things are."""
    import pyspark

    return {
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "PYSPARK_PYTHON": sys.executable,
        "LC_ALL": "C.UTF-8",
        "PYTHONUTF8": "1",
        "LOG4J_CONFIGURATION_FILE": str(ROOT / "conf" / "log4j2.properties"),
        "SPARK_SUBMIT_OPTS": options(),
        **({"JAVA_HOME": os.environ["JAVA_HOME"]} if "JAVA_HOME" in os.environ else {}),
    }
