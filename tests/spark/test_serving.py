"""`serve`, as a process of its own: what clients of TensorFlow Serving get, and what bad ones do."""

import base64
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from seedlings_spark import images
from seedlings_spark.models.store import NETWORK, ONNX, ModelStore
from tests import browser
from tests.conftest import HANG_SECONDS, with_all

ROOT = Path(__file__).parents[2]
HERE = {**os.environ, "SEEDLINGS_PYTHON": sys.executable}
SIZE, CLASSES = (8, 12), ["Rübe", "Weizen", "<i>Mais</i>"]
WEIGHTS = {"v0001": np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32) / 50}
WEIGHTS["v0002"] = WEIGHTS["v0001"][:, ::-1].copy()
PICTURES = np.random.default_rng(0).integers(0, 256, (40, *SIZE, 3), dtype=np.uint8)


def network(weights: Any) -> bytes:
    """The softmax of a picture's mean colour times the weights, as ONNX."""
    pixels = helper.make_tensor_value_info("features", TensorProto.UINT8, [None, *SIZE, 3])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])
    nodes = [
        helper.make_node("Cast", ["features"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    constants = {"axes": np.array([1, 2]), "weights": weights}
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "network", [pixels], [output], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def expected(pictures: Any, version: str = "v0001") -> Any:
    logits = pictures.reshape(len(pictures), -1, 3).mean(1) @ WEIGHTS[version]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@dataclass(frozen=True)
class Running:
    """A server of this test's own.

    Args:
        port: On loopback.
        log: What it says.
    """

    port: int
    log: Path

    def ask(self, path: str, body: object = None, **more: Any) -> tuple[int, Any]:
        """Status and content of an answer; a body that is no text or bytes is sent as JSON."""
        content = body if isinstance(body, str | bytes | None) else json.dumps(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, content, **more)
            answer = connection.getresponse()
            text = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(text) if is_json else text.decode()

    def begun(self, body: bytes, announced: int) -> socket.socket:
        """A client that has sent so much of its body."""
        client = socket.create_connection(("127.0.0.1", self.port), HANG_SECONDS)
        head = f"POST /v1/models/fields:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n\r\n"
        client.sendall(head.encode() + body)
        return client


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "a store"
    for weights in WEIGHTS.values():

        def build(place: str, weights: Any = weights) -> None:
            (Path(place.removeprefix("file://")) / NETWORK).write_bytes(b"none")
            (Path(place.removeprefix("file://")) / ONNX).write_bytes(network(weights))

        ModelStore(str(folder), "fields").publish(build, {"classes": CLASSES, "image_size": list(SIZE)})
    return folder


@contextlib.contextmanager
def running(store: Path, log: Path, *options: str, before: Sequence[str] = ()) -> Iterator[Running]:
    command = [*before, ROOT / "spark-submit.sh", "serve", "--store", store, "--port", "0", *options]
    with log.open("w") as said:
        process = subprocess.Popen([*map(str, command)], stderr=said, env=HERE)
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text())):
            assert process.poll() is None, log.read_text()
        yield Running(int(found[1]), log)
    finally:
        process.terminate()
        process.wait(HANG_SECONDS)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("server") / "log"
    options = ("--models", "fields/v0001", "fields/v0002", "--max-bytes", "200000", "--max-pixels", "5000")
    with running(store, log, *options, "--timeout", "5") as each:
        yield each


def coded(pictures: Any) -> list[dict[str, str]]:
    return [{"b64": base64.b64encode(images.encode_png(each)).decode()} for each in pictures]


PREDICT = "/v1/models/fields:predict"


def test_clients_of_tensorflow_serving_are_answered(server: Running) -> None:
    some = PICTURES[:20]
    named = [{"image_bytes": each} for each in coded(some)]
    for instances in (coded(some), named, some.tolist(), [{"pixels": each} for each in some.tolist()]):
        for path, version in ((PREDICT, "v0001"), ("/v1/models/fields/versions/2:predict", "v0002")):
            status, answer = server.ask(path, {"signature_name": "any", "instances": instances})
            assert status == 200
            found = np.array([each["probabilities"] for each in answer["predictions"]])
            assert np.abs(found - expected(some, version)).max() < 1e-6
            assert answer["predictions"][0]["classes"] == CLASSES
    status, answer = server.ask(PREDICT, {"inputs": {"image_bytes": coded(some)}})
    assert np.abs(np.array(answer["outputs"]["probabilities"]) - expected(some)).max() < 1e-6
    _, answer = server.ask("/v1/models/fields")
    assert [each["version"] for each in answer["model_version_status"]] == ["1", "2"]
    assert server.ask("/health") == (200, {"status": "ok"})


def large(side: int) -> list[dict[str, str]]:
    return coded([np.zeros((side, side, 3), np.uint8)])


BAD = {
    "an unknown model": ("/v1/models/none:predict", {"instances": coded(PICTURES[:1])}, 404, "no none here"),
    "an unknown version": ("/v1/models/fields/versions/9:predict", {}, 404, "no fields 9 here"),
    "no path of ours": ("/v1/nothing", {}, 404, "nothing at this path"),
    "a wrong method": (PREDICT, None, 405, "expected POST"),
    "no JSON": (PREDICT, '{"instances": [', 400, "no JSON"),
    "JSON without an end": (PREDICT, "[" * 100_000, 400, "no JSON"),
    "no UTF-8": (PREDICT, b'{"instances": "\xff"}', 400, "no JSON"),
    "JSON of something else": (PREDICT, [1], 400, "either instances or inputs"),
    "no image": (PREDICT, {"instances": []}, 400, "at least one image"),
    "neither bytes nor pixels": (PREDICT, {"instances": [7]}, 400, "image 0 is neither"),
    "no base64": (PREDICT, {"instances": [{"b64": "?"}]}, 400, "image 0 is not in base64"),
    "a file that is no image": (PREDICT, {"instances": [{"b64": "AAAA"}]}, 400, "image 0 .*not_an_image"),
    "an image after others": (
        PREDICT,
        {"instances": [*coded(PICTURES[:2]), {"b64": ""}]},
        400,
        "image 2 .*empty",
    ),
    "too many pixels": (PREDICT, {"instances": large(71)}, 413, "image 0 .*too_large"),
    "a long body": (PREDICT, "x" * 200_001, 413, "expected at most 200000"),
    "10,000 images": (PREDICT, {"instances": [0] * 10_000}, 413, "10000 images in one request"),
    "pixels of another size": (PREDICT, {"instances": [[[[1, 2, 3]]]]}, 400, "not 8 x 12 pixels"),
    "texts for pixels": (
        PREDICT,
        {"instances": [[["x" * 50_000, *[""] * 11]] * 2]},
        400,
        "not 8 x 12 pixels",
    ),
    "ragged pixels": (PREDICT, {"instances": [[[[1, 2, 3]], [[1, 2]]]]}, 400, "not 8 x 12 pixels"),
    "pixels beyond white": (
        PREDICT,
        {"instances": (PICTURES[:1] + np.int64(1000)).tolist()},
        400,
        "0 to 255",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_its_status_and_one_line(server: Running, name: str) -> None:
    path, body, status, said = BAD[name]
    found, answer = server.ask(path, body)
    assert found == status and re.search(said, answer["error"]) and "\n" not in answer["error"]
    assert len(answer["error"]) < 500


def test_clients_that_stop_half_way_or_say_nothing_are_let_go(server: Running) -> None:
    server.begun(b'{"inst', 1000).close()
    chunked = {"Transfer-Encoding": "chunked"}
    assert server.ask(PREDICT, b"x" * 10, headers=chunked, encode_chunked=True)[0] == 400
    with socket.create_connection(("127.0.0.1", server.port), HANG_SECONDS) as silent:
        with server.begun(b'{"inst', 1000) as slow:
            assert b" 504 " in slow.recv(4096)
        assert silent.recv(4096) == b""
    assert server.ask(PREDICT, {"instances": coded(PICTURES[:1])})[0] == 200


def test_a_crowd_loses_nothing_and_is_computed_together(server: Running) -> None:
    def ask(number: int) -> Any:
        status, answer = server.ask(PREDICT, {"instances": coded(PICTURES[number : number + 1])})
        return status, answer["predictions"][0]["probabilities"]

    numbers = [number % len(PICTURES) for number in range(400)]
    with concurrent.futures.ThreadPoolExecutor(100) as clients:
        answers = list(clients.map(ask, numbers))
    assert {status for status, _ in answers} == {200}
    assert np.abs(np.array([row for _, row in answers]) - expected(PICTURES[numbers])).max() < 1e-6
    metrics = server.ask("/metrics")[1]
    (passes,) = re.findall(r'batch_images_count\{model="fields",version="v0001"\} (\S+)', metrics)
    (computed,) = re.findall(r'batch_images_sum\{model="fields",version="v0001"\} (\S+)', metrics)
    assert float(computed) > float(passes)


@with_all
def test_five_hundred_clients_lose_nothing_in_half_a_minute(store: Path, tmp_path: Path) -> None:
    """With `-s` it says how fast that was."""
    bodies = [json.dumps({"instances": coded(PICTURES[[place]])}) for place in range(len(PICTURES))]
    wanted = expected(PICTURES)

    options = ("--models", "fields/v0001")
    with (
        running(store, tmp_path / "log", *options) as server,
        concurrent.futures.ThreadPoolExecutor(500) as clients,
    ):
        end = time.monotonic() + 30

        def ask(number: int) -> list[float]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_SECONDS)
            seconds = list[float]()
            with contextlib.closing(connection):
                while time.monotonic() < end:
                    place, began = (number + len(seconds)) % len(bodies), time.monotonic()
                    connection.request("POST", PREDICT, bodies[place])
                    answer = connection.getresponse()
                    content = json.loads(answer.read())
                    seconds.append(time.monotonic() - began)
                    assert answer.status == 200
                    (found,) = content["predictions"]
                    assert np.abs(found["probabilities"] - wanted[place]).max() < 1e-6
            return seconds

        taken = [each for of_one in clients.map(ask, range(500)) for each in of_one]
        computed = re.search(
            r'batch_images_sum\{model="fields",version="v0001"\} (\S+)', server.ask("/metrics")[1]
        )
        assert computed and float(computed[1]) == len(taken) >= 500
    p50, p99 = np.quantile(taken, [0.5, 0.99])
    print(f"{len(taken) / 30:.0f} answers a second, p50 {p50:.2f} s, p99 {p99:.2f} s")


def test_more_than_it_can_take_at_once_are_told_to_come_again(store: Path, tmp_path: Path) -> None:
    ModelStore(str(store), "fields").promote("v0002")
    body = json.dumps({"instances": coded(PICTURES[:1])}).encode()
    with running(store, tmp_path / "log", "--max-requests", "2") as server, contextlib.ExitStack() as held:
        clients = [held.enter_context(server.begun(body[:10], len(body))) for _ in range(2)]
        while "requests_at_once 2.0" not in server.ask("/metrics")[1]:
            pass
        assert server.ask(PREDICT, body) == (
            503,
            {"error": "too many requests at once; come again in a second"},
        )
        for client in clients:
            client.sendall(body[10:])
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert server.ask(PREDICT, body)[0] == 200
        # More than a connection holds, from a client that sends all before it reads.
        for path, status in ((PREDICT, 413), ("/v1/models/none:predict", 404)):
            assert server.ask(path, b"x" * 40_000_000)[0] == status


def test_more_connections_than_files_are_turned_away_and_the_others_served_on(
    store: Path, tmp_path: Path
) -> None:
    few = ["bash", "-c", 'ulimit -n 160; exec "$@"', "bash"]
    with running(store, tmp_path / "log", before=few) as server:
        with contextlib.ExitStack() as held:
            for _ in range(300):
                held.enter_context(socket.create_connection(("127.0.0.1", server.port), HANG_SECONDS))
            many = held.enter_context(socket.create_connection(("127.0.0.1", server.port), HANG_SECONDS))
            assert many.recv(4096).startswith(b"HTTP/1.1 503 ")
        while server.ask("/health")[0] != 200:
            pass
        assert len((tmp_path / "log").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "options, said",
    [
        (["--models", "fields/v0009"], "no version v0009"),
        (["--models", "fields/v0001", "fields/v0001"], "twice"),
        (["--store", "hdfs://nn/store"], "a folder of this machine"),
        (["--host", "192.0.2.1"], "cannot be listened on"),
        (["--port", "65536"], "--port 65536"),
    ],
)
def test_what_cannot_be_served_is_one_line(store: Path, options: list[str], said: str) -> None:
    command = [ROOT / "spark-submit.sh", "serve", "--store", store, "--port", "0", *options]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=HANG_SECONDS, env=HERE
    )
    assert done.returncode in (1, 2) and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_options_of_spark_are_not_for_it(store: Path) -> None:
    command = [ROOT / "spark-submit.sh", "--master", "local[2]", "serve", "--store", store]
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=HANG_SECONDS, env=HERE
    )
    assert done.returncode == 2 and "--master local[2] before serve" in done.stderr


@pytest.mark.skipif(bool(browser.MISSING), reason=browser.MISSING)
def test_the_page_shows_versions_side_by_side(server: Running, tmp_path: Path) -> None:
    pictures = []
    for number, picture in enumerate(PICTURES[:2]):
        pictures.append(tmp_path / f"{number}.png")
        pictures[-1].write_bytes(images.encode_png(picture))
    (tmp_path / "none.png").write_bytes(b"none")
    with browser.browser() as page:
        page.open(f"http://127.0.0.1:{server.port}/")
        page.wait("return document.body.dataset.ready")
        page.upload("#choose", *pictures, tmp_path / "none.png")
        page.wait("return document.querySelectorAll('[data-done]').length == 3")
        shown = page.run("return [...document.querySelectorAll('.result')].map(each => each.innerText)")
    assert shown[0].count("image 0 is rejected: not_an_image") == 2
    for text, picture in zip(shown[:0:-1], PICTURES, strict=False):
        best = [CLASSES[expected(picture[None], version).argmax()] for version in ("v0001", "v0002")]
        assert re.findall(r"^fields (v000\d)\n\n?(.+)$", text, re.MULTILINE) == [
            ("v0001", best[0]),
            ("v0002", best[1]),
        ]
