"""A real browser, headless, by the W3C's WebDriver protocol: chromedriver speaks it over HTTP."""

import base64
import contextlib
import functools
import http.server
import json
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import HANG_SECONDS

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "" if CHROMIUM and DRIVER else "no chromium and chromedriver on this machine"
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # as the protocol calls a reference to one


class Browser:
    """One window of a browser.

    Args:
        address: Of a session of chromedriver.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def call(self, path: str, content: object = None, method: str = "") -> Any:
        return _asked(self._address + path, content, method)

    def open(self, address: str) -> None:
        self.call("/url", {"url": address})

    def resize(self, width: int, height: int) -> None:
        """Give the page, not the window, this size: windows have a least width, phones have less."""
        command = {
            "cmd": "Emulation.setDeviceMetricsOverride",
            "params": {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        }
        self.call("/goog/cdp/execute", command)

    def offline(self) -> None:
        conditions = {"offline": True, "latency": 0, "download_throughput": 0, "upload_throughput": 0}
        self.call("/chromium/network_conditions", {"network_conditions": conditions})

    def run(self, script: str) -> Any:
        """What a function's body returns."""
        return self.call("/execute/sync", {"script": script, "args": []})

    def result(self, script: str, *arguments: object) -> Any:
        """What an asynchronous function's body returns."""
        waited = (
            f"const done = arguments[arguments.length - 1]; (async function() {{ {script} }})(...arguments)"
        )
        content = {"script": f"{waited}.then(done, (error) => done(String(error)))", "args": arguments}
        return self.call("/execute/async", content)

    def press(self, *keys: str) -> None:
        """Press and release keys, as the protocol names them: "a", or a character for each that is no letter."""
        each = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": each}]})

    def save_to(self, folder: Path) -> None:
        """Let what a page saves go into a folder, without a question."""
        params = {"behavior": "allow", "downloadPath": str(folder)}
        self.call("/goog/cdp/execute", {"cmd": "Browser.setDownloadBehavior", "params": params})

    def upload(self, selector: str, *pictures: Path) -> None:
        found = self.call("/element", {"using": "css selector", "value": selector})
        paths = "\n".join(map(str, pictures))
        self.call(f"/element/{found[_ELEMENT]}/value", {"text": paths})

    def wait(self, script: str) -> Any:
        """What a function's body returns, once that is true."""
        end = time.monotonic() + HANG_SECONDS
        while not (found := self.run(script)):
            assert time.monotonic() < end, self.run("return document.body.innerText")
            time.sleep(0.1)
        return found

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("/screenshot")))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, closed at the end."""
    assert CHROMIUM and DRIVER
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            line = next(line for line in process.stdout if "successfully on port" in line)
            port = line.strip(".\n").rpartition(" ")[2]
            address = f"http://127.0.0.1:{port}"
            arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
            options = {"binary": CHROMIUM, "args": arguments}
            asked = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
            session = f"{address}/session/{_asked(f'{address}/session', asked)['sessionId']}"
            try:
                _asked(f"{session}/timeouts", {"script": 1000 * HANG_SECONDS})
                yield Browser(session)
            finally:
                _asked(session, method="DELETE")
        finally:
            process.terminate()
            process.wait(HANG_SECONDS)
            process.stdout.close()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a plain web server for a folder."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _asked(address: str, content: object = None, method: str = "") -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data, method=method or ("POST" if data else "GET"))
    with urllib.request.urlopen(request, timeout=HANG_SECONDS) as answer:
        return json.load(answer)["value"]
