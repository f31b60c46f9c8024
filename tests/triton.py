"""A real Triton server on loopback, and its makers' client for gRPC.

Both come from wheels, which pip fetches once for all checkouts of this user, apart from what is tested: the server
wants NumPy 1 in the Python of its backend. Its wheel has the server and the Python backend only, and needs no GPU.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import HANG_SECONDS
from tests.java import CACHE, once, why_not_fetched

_SERVER = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
_CLIENT = ("tritonclient==2.73.0", "python-rapidjson==1.25")
_FETCH_SECONDS = 1_200.0


class NoServerError(Exception):
    """Why there is no Triton server on this machine."""


def client() -> Path:
    """The folder of the client's package, to be put on Python's path."""
    return _fetched("client", _CLIENT)


@contextmanager
def server(models: Path, scratch: Path) -> Iterator[tuple[str, str]]:
    """A server that has loaded a model repository; gives the addresses for HTTP and for gRPC.

    Raises:
        NoServerError: It cannot be fetched.
    """
    fetched = _fetched("server", _SERVER)
    place = fetched / "pytriton" / "tritonserver"
    backends = scratch / "backends"
    shutil.copytree(place / "backends", backends)
    version = ".".join(map(str, sys.version_info[:2]))
    shutil.copy2(place / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    # The backend's Python is isolated: what it imports lies beside it.
    for package in (*fetched.glob("numpy*"), *Path(sysconfig.get_path("purelib")).iterdir()):
        if not os.path.lexists(link := backends / "python" / package.name):
            link.symlink_to(package)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        http, grpc = one.getsockname()[1], other.getsockname()[1]
    libraries = [fetched / "nvidia_pytriton.libs", place, sysconfig.get_config_var("LIBDIR")]
    command = [
        place / "bin" / "tritonserver",
        f"--model-repository={models}",
        f"--backend-directory={backends}",
    ]
    command += ["--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1"]
    command += [f"--grpc-port={grpc}", "--allow-metrics=false"]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    with (scratch / "triton.log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _wait(process, f"http://127.0.0.1:{http}/v2/health/ready", scratch / "triton.log")
        yield f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
    finally:
        process.terminate()  # it ends its backend's processes
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], ready: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        try:
            opener.open(ready, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)


def _fetched(name: str, packages: tuple[str, ...]) -> Path:
    folder = CACHE / "triton" / f"{packages[0]}-{name}"
    with once(folder) as place:
        if place is not None:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place)]
            if why := why_not_fetched([*command, *packages], _FETCH_SECONDS):
                raise NoServerError(why)
    return folder
