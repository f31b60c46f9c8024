"""The Python packages of this installation as an archive, for cluster nodes that have none of them.

    environment.tar.gz/bin/python   finds on the node's PATH the Python that packed, and gives it the packages
    environment.tar.gz/lib/         the packages, in the very versions that are installed here
    environment.tar.gz/LICENSES.txt their licences

Spark brings pyspark itself, and the submit brings `seedlings_spark`, so neither is in it; TensorFlow is the one for
CPUs, a third of the size, unless GPUs are wanted. `./spark-submit.sh pack` calls this; nothing of it runs in a job.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from seedlings_spark import display

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
# What Spark brings along, and what TensorFlow names and does not import.
_LEFT_OUT = {"pyspark", "py4j", "libclang"}
# What pip is given to install Elephas, which pyproject.toml does not name: its metadata allows NumPy 1, Spark 4.0.0 and
# TensorFlow 2.19 only, and what it imports of others is named there.
ELEPHAS = ("--no-deps", "--ignore-requires-python", "elephas==7.3.0")
_FOR_CPUS = {"tensorflow": "tensorflow-cpu"}
# Headers for C++, and tests: nobody imports them.
_UNUSED = ("tensorflow/include", "pandas/tests", "numpy/*/tests", "sklearn/*/tests", "pyarrow/include")
# Before the table of licences: what no package declares.
_BUNDLED = """\
The packages in lib, and the licences that they declare. Their texts, and those of the libraries that the packages bring
along, are in lib/*.dist-info and in the packages' folders. GNU's runtime libraries are among those (libgomp and
libgfortran: GPL with the GCC Runtime Library Exception; libquadmath: LGPL), unchanged and linked dynamically.

"""
_LAUNCHER = """\
#!/bin/sh
# Python {version} of this node, with the packages beside this file.
here=$(cd "$(dirname "$0")/.." && pwd)
for python in python{version} python3 "{here}"; do
  if "$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "{version}")' 2>/dev/null; then
    PYTHONPATH=$here/lib${{PYTHONPATH:+:$PYTHONPATH}} exec "$python" "$@"
  fi
done
echo "no Python {version} on the PATH of this node: $PATH" >&2
exit 127
"""


def pinned(*, gpu: bool = False) -> list[str]:
    """What a job needs beside Spark, as `name==version` of what is installed here.

    Args:
        gpu: Whether to take the TensorFlow that also knows GPUs.
    """
    swapped = {} if gpu else _FOR_CPUS
    found = {**dict(_installed(_direct(), set())), "elephas": metadata.version("elephas")}
    return [f"{swapped.get(name, name)}=={version}" for name, version in sorted(found.items())]


def _direct() -> list[str]:
    """What we name ourselves: in a checkout, which need not be installed, or in an installed wheel."""
    if not _PROJECT.exists():
        return metadata.requires("seedlings-spark") or []
    dependencies: list[str] = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return dependencies


def _installed(requirements: list[str], seen: set[str]) -> Iterator[tuple[str, str]]:
    """What is required, directly or not, with the versions that are installed here."""
    for requirement in map(Requirement, requirements):
        needed = canonicalize_name(requirement.name)
        is_meant = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if is_meant and needed not in seen | _LEFT_OUT:
            seen.add(needed)
            yield needed, metadata.version(needed)
            yield from _installed(metadata.requires(needed) or [], seen)


def licences(folder: Path) -> dict[str, str]:
    """The licence that each package in a folder declares, by the package's name and version."""
    found = {}
    for package in metadata.distributions(path=[str(folder)]):
        name = f"{canonicalize_name(package.metadata['Name'])} {package.version}"
        found[name] = _licence(package.metadata)
    return dict(sorted(found.items()))


def _licence(declared: "metadata.PackageMetadata") -> str:
    """As SPDX names it, else by its trove classifiers, else in the package's words, which may be the whole text."""
    classifiers: list[str] = declared.get_all("Classifier") or []
    known = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: ")]
    words: list[str] = declared.get_all("License") or ["in its files only"]
    expressions: list[str] = declared.get_all("License-Expression") or []
    return "; ".join(expressions or known) or words[0].strip().partition("\n")[0]


def pack(target: Path, requirements: list[str]) -> None:
    """Install packages into a folder of their own and pack it.

    Args:
        target: The archive, replaced whole.
        requirements: What `pinned` returned.
    """
    version = "{}.{}".format(*sys.version_info)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        root = Path(folder) / "environment"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        options = [*ELEPHAS[:-1], "--target", str(root / "lib")]
        subprocess.run([*pip, *options, *requirements], check=True)  # noqa: S603 - pip, with the names of what is installed
        for pattern in _UNUSED:
            for place in (root / "lib").glob(pattern):
                shutil.rmtree(place)
        launcher = root / "bin" / "python"
        launcher.parent.mkdir()
        base = getattr(sys, "_base_executable", sys.executable)
        launcher.write_text(_LAUNCHER.format(version=version, here=base), encoding="utf-8")
        launcher.chmod(0o755)
        table = display.table(list(licences(root / "lib").items()))
        (root / "LICENSES.txt").write_text(f"{_BUNDLED}{table}\n", encoding="utf-8")
        archive = Path(folder) / target.name
        with tarfile.open(archive, "w:gz", compresslevel=6) as packed:
            for place in sorted(root.iterdir()):
                packed.add(place, place.name)
        archive.replace(target)


def zip_package(package: Path, target: Path) -> None:
    """Write a package, with the files beside its modules, into an archive, for Python workers and drivers elsewhere."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(package.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, file.relative_to(package.parent))


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack, as the command line says; the exit code."""
    parser = argparse.ArgumentParser(description="Pack the Python packages of this installation.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--gpu", action="store_true")
    given = parser.parse_args(arguments)
    try:
        pack(given.archive, pinned(gpu=given.gpu))
    except (metadata.PackageNotFoundError, subprocess.CalledProcessError) as error:
        print(
            f"{error}. Expected an installation of what pyproject.toml names, with pip. Unset SEEDLINGS_PYTHON, so"
            " that .venv is made and used, and try again.",
            file=sys.stderr,
        )
        return 1
    print(f"{given.archive}  {given.archive.stat().st_size / 1e6:,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
