"""The examples, each as a stranger starts it, on drawn images and numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from seedlings_spark.corpus import synthetic
from tests.conftest import HANG_SECONDS, ROOT, with_all

pytestmark = with_all

EXAMPLES = ROOT / "examples"


def submit(folder: Path, *arguments: str) -> str:
    """What a program prints that the script runs."""
    ran = subprocess.run(
        [str(ROOT / "spark-submit.sh"), "--master", "local[2]", *arguments],
        env={**os.environ, "SEEDLINGS_PYTHON": sys.executable},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_program_learns_and_predicts_and_does_nothing_twice(tmp_path: Path) -> None:
    for name, images in (("photos", 6), ("new photos", 2)):
        synthetic.write_corpus(tmp_path / name, images_per_species=images, size=32)
    call = (str(EXAMPLES / "program.py"), "--photos", "photos", "--unknown", "new photos", "--output", "made")
    said = submit(tmp_path, *call, "--epochs", "1")
    counts = re.findall(r"^\|(\w[\w ]*\w) *\|(\d+) *\|0\.\d+ *\|$", said, re.MULTILINE)
    assert {species for species, _ in counts} <= set(synthetic.SPECIES)
    assert sum(int(count) for _, count in counts) == 24
    if "SEEDLINGS_TEST_ALL" in os.environ:  # half a minute more
        assert submit(tmp_path, *call, "--epochs", "1") == said
    assert [folder.name for folder in (tmp_path / "made" / "store" / "seedlings").glob("v*")] == ["v0001"]


def test_the_pipeline_of_elephas_documentation_learns(tmp_path: Path) -> None:
    said = submit(tmp_path, str(EXAMPLES / "otto.py"), "--rows", "1500", "--epochs", "3")
    (accuracy,) = re.findall(r"^accuracy (\d\.\d+) on rows", said, re.MULTILINE)
    assert float(accuracy) > 0.6  # a guess is right in one of nine


@pytest.mark.skipif("SEEDLINGS_TEST_ALL" not in os.environ, reason="takes minutes: with test --all")
def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(EXAMPLES / "photographs.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "it is kept without outputs"

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # It has a kernel of its own, which ends with the call, also when a cell fails.
    NotebookClient(notebook, timeout=HANG_SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()

    printed = "".join(out.text for cell in cells for out in cell.outputs if out.get("name") == "stdout")
    assert "'listed': 288, 'accepted': 288, 'rejected': 0" in printed
    assert "{'listed': 288, 'scored': 288, 'rejected': 0}" in printed
    (accuracy,) = re.findall(r"^accuracy (\d\.\d+) on", printed, re.MULTILINE)
    assert float(accuracy) > 0.4  # a guess is right in one of twelve
    pictures = [out for cell in cells for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) >= 3  # and the wrong ones, if there are any
