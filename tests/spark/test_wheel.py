"""`pip install seedlings-spark`: the command `seedlings` in an empty folder, without the repository."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from seedlings_spark.cluster import environment
from seedlings_spark.corpus import synthetic
from tests.conftest import HANG_SECONDS

ROOT = Path(__file__).parents[2]
SOURCES = ("seedlings_spark", "jobs", "conf", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def ran(*command: str | Path, folder: Path, variables: Mapping[str, str] | None = None) -> str:
    """What a command says on stdout; a failure tells what it said on stderr."""
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of an environment with the wheel and, from this Python, all that the wheel needs."""
    folder = tmp_path_factory.mktemp("a wheel")
    for name in SOURCES:  # a copy, since a build leaves files behind
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / "sources" / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / "sources")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    ran(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "./sources", folder=folder)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(folder / "sources")
    place = folder / "an environment"
    venv.create(place, symlinks=True)
    (libraries,) = place.glob("lib/python*/site-packages")
    # Of a .pth file that is itself in such a folder Python reads nothing: the checkout stays unknown.
    (libraries / "others.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    python = place / "bin" / "python"
    # Whatever of ours this Python has installed is not what is tried here.
    ran(
        *pip,
        "--python",
        python,
        "install",
        "--ignore-installed",
        "--no-deps",
        "--no-index",
        wheel,
        folder=folder,
    )
    return place / "bin"


def test_a_wheel_scores_images_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    num_images = synthetic.write_corpus(tmp_path / "images", images_per_species=1, size=16)
    with zipfile.ZipFile(ROOT / "tests" / "data" / "saved_by_0.1.0.zip") as saved:
        saved.extractall(tmp_path, [name for name in saved.namelist() if name.startswith("store/")])
    here = tmp_path / "empty"
    here.mkdir()
    kept = {"PATH", "JAVA_HOME", "SPARK_SUBMIT_OPTS"}  # no PYTHONPATH
    variables = {name: value for name, value in os.environ.items() if name in kept}

    def said(*command: str | Path) -> str:
        return ran(*command, folder=here, variables=variables)

    where = said(installed / "python", "-c", "import seedlings_spark; print(seedlings_spark.__file__)")
    assert Path(where).is_relative_to(installed.parent)
    packed = "from seedlings_spark.cluster import environment; print(*environment.pinned())"
    assert said(installed / "python", "-c", packed).split() == environment.pinned()
    seedlings = installed / "seedlings"
    assert "seedlings_spark" in said(seedlings, "--version")
    usage = said(seedlings, "score", "--help")
    assert (
        usage.startswith("usage: seedlings [spark-submit options] score ") and "spark-submit.sh" not in usage
    )
    assert "spark-submit.sh" not in said(seedlings, "--help")
    places = ("--images", "../images", "--store", "../store", "--output", "scores")
    said(seedlings, "--master", "local[1]", "score", *places)
    predictions = pq.read_table(next(here.glob("scores/runs/*/predictions")))
    assert predictions.num_rows == num_images == 12
