"""The server: its routes, its limits, and what it tells of itself."""

import asyncio
import contextlib
import json
import logging
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedlings_spark.errors import ClusterError
from seedlings_spark.exports import web
from seedlings_spark.serving import requests
from seedlings_spark.serving.batches import Batcher
from seedlings_spark.serving.requests import RefusedError
from seedlings_spark.serving.versions import Catalogue, Served

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_log = logging.getLogger(__name__)

_CROWDED = "too many requests at once; come again in a second"
_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "predict.js": "text/javascript",
    "manifest.webmanifest": "application/manifest+json",
}
_KEEP_ALIVE_SECONDS = 15
# Connections that wait to be accepted, and open files that are none.
_BACKLOG, _OTHER_FILES = 2048, 64
_MOST_FILES = 65536
# Of a body that is too long, so many times the longest is read, and not kept.
_DRAINED = 8
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


@dataclass(frozen=True)
class Limits:
    """What one server takes at most.

    Args:
        max_bytes: Longest body of a request.
        max_pixels: Most pixels of a picture.
        max_requests: Predictions that are asked for at once; more are told to come again.
        max_waiting_bytes: Bodies of all of them together.
        timeout: Seconds for a request, from its first byte to its answer.
    """

    max_bytes: int
    max_pixels: int
    max_requests: int
    max_waiting_bytes: int
    timeout: float


class Server:
    """What is behind the routes.

    Args:
        catalogue: The versions.
        limits: Its limits.
        threads: Threads that decode pictures.

    Raises:
        ClusterError: The extra `serve` is not installed.
    """

    def __init__(self, catalogue: Catalogue, limits: Limits, threads: int) -> None:
        try:
            import prometheus_client
            import starlette
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise ClusterError(
                f"a Python without the server's packages ({error})",
                "the extra `serve` of this package",
                "Install seedlings-spark[serve]",
            ) from None
        del starlette
        self._catalogue, self._limits = catalogue, limits
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._forwards = ThreadPoolExecutor(len(catalogue.served), "forward")
        self._num_requests, self._num_bytes = 0, 0
        self._registry = prometheus_client.CollectorRegistry()
        self._answers = prometheus_client.Counter(
            "seedlings_requests",
            "Predictions asked for",
            ["model", "version", "status"],
            registry=self._registry,
        )
        self._seconds = prometheus_client.Histogram(
            "seedlings_request_seconds", "From a request's head to its answer", registry=self._registry
        )
        batches = prometheus_client.Histogram(
            "seedlings_batch_images",
            "Images of a forward pass",
            ["model", "version"],
            buckets=(1, 2, 4, 8, 16),
            registry=self._registry,
        )
        prometheus_client.Gauge(
            "seedlings_requests_at_once", "Predictions being made", registry=self._registry
        ).set_function(lambda: self._num_requests)
        self._batchers = {
            id(each): Batcher(
                each.engine.run, self._forwards, batches.labels(each.name, each.version.version).observe
            )
            for each in catalogue.served
        }

    def application(self) -> "Starlette":
        """The server as an ASGI application."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        model = "/v1/models/{name}"
        version = model + "/versions/{version}"
        routes = [
            *(Route(f"{path}:predict", self._predicted, methods=["POST"]) for path in (version, model)),
            *(Route(f"{path}/metadata", self._metadata) for path in (version, model)),
            *(Route(path, self._status) for path in (version, model)),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/models.json", self._models),
            Route("/", self._page),
            *(Route(f"/{name}", self._page) for name in _PAGE),
        ]
        return Starlette(routes=routes, exception_handlers={404: _refused, 405: _refused, 500: _failed})

    async def _predicted(self, request: "Request") -> "Response":
        from starlette.requests import ClientDisconnect

        start, served = time.monotonic(), None
        try:
            served = self._found(request)
            response = await self._within_time(request, served)
        except RefusedError as refused:
            if refused.status != 504:
                await self._drain(request)
            response = _said(refused.status, refused.said)
        except ClientDisconnect:
            response = _said(400, "the client has gone")
        except Exception:
            _log.exception("a prediction failed")
            response = _said(500, "the prediction failed; the server's log says why")
        of = (served.name, served.version.version) if served else ("", "")
        self._answers.labels(*of, str(response.status_code)).inc()
        self._seconds.observe(time.monotonic() - start)
        return response

    async def _drain(self, request: "Request") -> None:
        """Read what is left of a body that is not wanted: many clients look for an answer only when all is sent."""
        from starlette.requests import ClientDisconnect

        left = _DRAINED * self._limits.max_bytes
        # A body that has been read whole is a RuntimeError to Starlette.
        with contextlib.suppress(ClientDisconnect, TimeoutError, RuntimeError):
            async with asyncio.timeout(self._limits.timeout):
                async for part in request.stream():
                    left -= len(part)
                    if left < 0:
                        return

    async def _within_time(self, request: "Request", served: Served) -> "Response":
        try:
            async with asyncio.timeout(self._limits.timeout):
                return await self._predict(request, served)
        except TimeoutError:
            raise RefusedError(504, f"no answer within {self._limits.timeout:g} s") from None

    async def _predict(self, request: "Request", served: Served) -> "Response":
        from starlette.responses import Response

        with self._admitted(_announced(request, self._limits.max_bytes)):
            body = await _body(request.stream(), self._limits.max_bytes)
            size = served.version.image_size
            loop = asyncio.get_running_loop()

            def decoded() -> Any:
                asked = requests.read(body)
                pixels = requests.pixels(asked, size, served.version.aspect, self._limits.max_pixels)
                return asked.by_rows, pixels

            by_rows, pixels = await loop.run_in_executor(self._decoders, decoded)
            with self._held(pixels.nbytes):
                probabilities = await self._batchers[id(served)].predict(pixels)
            content = requests.answer(by_rows, probabilities, served.version.classes)
            return Response(content, media_type="application/json")

    @contextlib.contextmanager
    def _admitted(self, num_bytes: int) -> Iterator[None]:
        """Count a request and its body while it is there.

        Raises:
            RefusedError: There are too many.
        """
        if self._num_requests >= self._limits.max_requests:
            raise RefusedError(503, _CROWDED)
        with self._held(num_bytes):
            self._num_requests += 1
            try:
                yield
            finally:
                self._num_requests -= 1

    @contextlib.contextmanager
    def _held(self, num_bytes: int) -> Iterator[None]:
        """Count bytes that wait, of a body or of the pictures in it.

        Raises:
            RefusedError: There are too many.
        """
        if self._num_bytes + num_bytes > self._limits.max_waiting_bytes:
            raise RefusedError(503, _CROWDED)
        self._num_bytes += num_bytes
        try:
            yield
        finally:
            self._num_bytes -= num_bytes

    def _found(self, request: "Request") -> Served:
        name, version = request.path_params["name"], request.path_params.get("version", "")
        served = self._catalogue.find(name, version)
        if served is None:
            known = ", ".join(f"{each.name} {each.version.version}" for each in self._catalogue.served)
            raise RefusedError(404, f"no {name[:100]} {version[:100]}".rstrip() + f" here; there is {known}")
        return served

    async def _status(self, request: "Request") -> "Response":
        if request.url.path.endswith(":predict"):
            return _said(405, "expected POST")
        try:
            found = self._found(request)
        except RefusedError as refused:
            return _said(refused.status, refused.said)
        of_model = [found] if "version" in request.path_params else self._catalogue.of(found.name)
        fine = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return _json(
            {"model_version_status": [{"version": str(each.version.number), **fine} for each in of_model]}
        )

    async def _metadata(self, request: "Request") -> "Response":
        try:
            found = self._found(request)
        except RefusedError as refused:
            return _said(refused.status, refused.said)
        spec = {"name": found.name, "signature_name": "", "version": str(found.version.number)}
        return _json({"model_spec": spec, "metadata": dict(found.about)})

    async def _health(self, request: "Request") -> "Response":
        return _json({"status": "ok"})

    async def _models(self, request: "Request") -> "Response":
        return _json([dict(each.about) for each in self._catalogue.served])

    async def _metrics(self, request: "Request") -> "Response":
        import prometheus_client
        from starlette.responses import Response

        content = prometheus_client.generate_latest(self._registry)
        return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def _page(self, request: "Request") -> "Response":
        from starlette.responses import FileResponse

        name = request.url.path.lstrip("/") or "index.html"
        folder = Path(__file__).parent if name == "predict.js" else web.PAGE
        return FileResponse(folder / name, media_type=_PAGE[name])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ClusterError: The port is taken, or the host is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)  # from now on clients wait, and are not turned away
    except OSError as error:
        raise ClusterError(
            f"{host} port {port}, which cannot be listened on ({error.strerror or error})",
            "an address of this machine and a port that is free",
            "Give another --port or --host; --port 0 takes any",
        ) from None
    return listening


def run(server: Server, listening: socket.socket, timeout: float) -> None:
    """Answer until the process is told to end (SIGINT, SIGTERM); what is being answered then is finished."""
    import uvicorn

    most, backlog = _room()
    config = uvicorn.Config(
        server.application(),
        http=_impatient(timeout, most),
        log_config=None,
        access_log=False,
        lifespan="off",
        backlog=backlog,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(timeout) + 1,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _room() -> tuple[int, int]:
    """Connections to keep open, and to let wait: asyncio fails loudly and for ever once no file can be opened."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    backlog = min(_BACKLOG, files // 16)
    # It accepts so many in one turn, and those of three more turns may not be closed yet.
    return files - 4 * backlog - _OTHER_FILES, backlog


def _impatient(timeout: float, most: int) -> Any:
    """Uvicorn's HTTP, which closes a connection that is one too many, or does not send a request's head in time."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.write(_FULL)
                transport.close()
            self.loop.call_later(timeout, self._close_if_silent, None)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.loop.call_later(timeout, self._close_if_silent, self.cycle)

        def _close_if_silent(self, before: Any) -> None:
            if self.cycle is before:
                self.transport.close()
                # What a client does not read keeps it open.
                self.loop.call_later(timeout, self.transport.abort)

    return Impatient


def _announced(request: "Request", most: int) -> int:
    """The bytes to expect of a request's body.

    Raises:
        RefusedError: They are too many.
    """
    announced = request.headers.get("content-length")
    length = int(announced) if announced and announced.isdigit() else most
    if length > most:
        raise RefusedError(413, f"a body of {length} bytes; expected at most {most}")
    return length


async def _body(parts: AsyncIterator[bytes], most: int) -> bytes:
    found = bytearray()
    async for part in parts:
        found += part
        if len(found) > most:
            raise RefusedError(413, f"a body of more than {most} bytes")
    return bytes(found)


def _json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
    from starlette.responses import Response

    body = json.dumps(content, ensure_ascii=False)
    return Response(body, status, dict(headers or {}), "application/json")


def _said(status: int, said: str) -> "Response":
    headers = {"Retry-After": "1"} if status == 503 else {}
    if status in (408, 413, 503, 504):  # what is left of the body is not read
        headers["Connection"] = "close"
    return _json({"error": said}, status, headers)


async def _refused(request: "Request", error: Exception) -> "Response":
    status = getattr(error, "status_code", 404)
    said = "nothing at this path" if status == 404 else f"{request.method[:20]} is not for this path"
    return _said(status, said)


async def _failed(request: "Request", error: Exception) -> "Response":
    return _said(500, "the server failed; its log says why")


def num_threads(asked: int) -> int:
    """Threads for decoding and for a forward pass: as asked for, or the cores that this process may use."""
    return asked or len(os.sched_getaffinity(0))
