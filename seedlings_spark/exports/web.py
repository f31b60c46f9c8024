"""A version as a folder for any web server: a page that computes in the visitor's browser.

onnxruntime-web is not in this package: an export takes it from npm, at the one version whose content is known here, or
from a folder. What it wrote needs neither npm nor a network.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import display, fingerprint
from seedlings_spark.errors import ClusterError
from seedlings_spark.exports.source import Source, in_parts
from seedlings_spark.models import engines
from seedlings_spark.models.store import ModelVersion

PAGE = Path(__file__).with_name("web")
# Of the package, what a page needs that computes on the processor; `package.json` names its makers and its licence.
_PACKAGE = "onnxruntime-web@1.30.0"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_LOADER, _WASM = "ort.wasm.min.mjs", "ort-wasm-simd-threaded"
_RUNTIME = (_LOADER, f"{_WASM}.mjs", f"{_WASM}.wasm")
_ABOUT = "package.json"
_NPM_SECONDS = 600
_NETWORK, _MODELS, _OFFLINE = "network.onnx", "models.json", "offline.js"

TAKES = "an image file of any format that the visitor's browser reads; the page does the rest"
GIVES = "the species on the page, with the probabilities of the five best"
VERIFIED_BY = "onnxruntime {onnxruntime}, from the same `network.onnx`"
USE = """\
Put this folder on any web server. To try it here: `python -m http.server --bind 127.0.0.1` and open
`http://127.0.0.1:8000`. A page opened from a disk (`file://`) may not load its parts.

Pictures stay in the visitor's browser. Over https (or on the machine itself) the page also opens without a network,
once it was open with one, and a phone can put it on its home screen. `runtime/` is onnxruntime-web (MIT licence).
The server should send `.wasm` as `application/wasm` and `.mjs` as `text/javascript`, as all current ones do.
"""


def write(source: Source, folder: Path) -> None:
    """Write the page, the network and onnxruntime-web.

    Raises:
        ClusterError: onnxruntime-web cannot be had.
    """
    for file in sorted(PAGE.iterdir()):
        shutil.copyfile(file, folder / file.name)
    (folder / _NETWORK).write_bytes(source.onnx)
    (folder / _MODELS).write_text(json.dumps([about(source.version)]) + "\n", encoding="utf-8")
    runtime = folder / "runtime"
    runtime.mkdir()
    if source.runtime_folder:
        _copy_runtime(Path(source.runtime_folder), runtime)
    else:
        _fetch_runtime(runtime)
    kept = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in (_OFFLINE, _ABOUT)
    )
    known = fingerprint.content_hash(b"".join(path.read_bytes() for path in kept))
    listed = ["./", *(f"./{path.relative_to(folder).as_posix()}" for path in kept)]
    script = (PAGE / _OFFLINE).read_text(encoding="utf-8")
    script = script.replace("@fingerprint@", known[:16]).replace("@files@", json.dumps(listed))
    (folder / _OFFLINE).write_text(script, encoding="utf-8")


def run(folder: Path, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities of the page's network, by ONNX Runtime."""
    return in_parts(engines.OnnxRuntime((folder / _NETWORK).read_bytes(), threads=1).run, rows)


def about(version: ModelVersion) -> Mapping[str, object]:
    """What a page has to know of a version."""
    return {
        "name": version.name,
        "version": version.version,
        "classes": [display.shown(name) for name in version.classes],
        "size": version.image_size,
        "aspect": version.aspect,
    }


def _copy_runtime(found: Path, runtime: Path) -> None:
    found = found / "dist" if (found / "dist").is_dir() else found
    for name in _RUNTIME:
        if not (found / name).is_file():
            raise ClusterError(
                f"--web-runtime {found} without {name}",
                f"the folder dist of the npm package {_PACKAGE}",
                "Get it by `npm pack`, unpack it and give its folder",
            )
        shutil.copyfile(found / name, runtime / name)
    about_it = found.parent / _ABOUT
    if about_it.is_file():
        shutil.copyfile(about_it, runtime / _ABOUT)


def _fetch_runtime(runtime: Path) -> None:
    """Let npm fetch the package, and take from it what is needed if it is the one that is known."""
    npm = shutil.which("npm")
    remedy = "Install npm, or fetch the package elsewhere (`npm pack`) and give its folder with --web-runtime"
    if npm is None:
        raise ClusterError("no npm on this machine", f"npm, to fetch {_PACKAGE}", remedy)
    with tempfile.TemporaryDirectory() as scratch:
        command = [npm, "pack", "--silent", _PACKAGE, "--pack-destination", scratch]
        try:
            done = subprocess.run(  # noqa: S603 - the machine's own npm
                command, capture_output=True, text=True, check=False, timeout=_NPM_SECONDS
            )
            said = (done.stderr.strip().splitlines() or [""])[0]
        except subprocess.TimeoutExpired:
            said = f"no answer in {_NPM_SECONDS} s"
        archive = next(Path(scratch).glob("*.tgz"), None)
        if archive is None:
            raise ClusterError(f"npm, which does not fetch {_PACKAGE} ({said[:300]})", "the package", remedy)
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != _SHA512:
            raise ClusterError(
                f"a {_PACKAGE} whose SHA-512 is {found}",
                _SHA512,
                "Ask who runs the registry: it is another package under that name",
            )
        with tarfile.open(archive) as content:
            for name in (_ABOUT, *(f"dist/{each}" for each in _RUNTIME)):
                member = content.extractfile(f"package/{name}")
                if member is not None:  # it is the archive that is known
                    (runtime / Path(name).name).write_bytes(member.read())
