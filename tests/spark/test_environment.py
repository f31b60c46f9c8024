"""The archive of packages: what is in it, and that its Python finds them from anywhere."""

import os
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

from seedlings_spark.cluster import environment


def test_the_versions_are_those_that_are_installed_here() -> None:
    pinned = dict(each.split("==") for each in environment.pinned())
    assert pinned["numpy"] == metadata.version("numpy")
    assert pinned["tensorflow-cpu"] == metadata.version("tensorflow")
    assert pinned["imagecodecs"] and pinned["grpcio"]  # needed by us, needed by TensorFlow
    assert not {"tensorflow", "pyspark", "py4j", "pytest", "ruff", "seedlings-spark"} & set(pinned)
    assert "tensorflow" in dict(each.split("==") for each in environment.pinned(gpu=True))


def test_a_packed_environment_works_in_any_folder(tmp_path: Path) -> None:
    archive = tmp_path / "environment.tar.gz"
    archive.write_bytes(b"an older one")
    environment.pack(archive, [f"six=={metadata.version('six')}"])
    assert [path.name for path in tmp_path.iterdir()] == ["environment.tar.gz"]
    home = tmp_path / "a node" / "environment"
    home.mkdir(parents=True)
    with tarfile.open(archive) as packed:
        packed.extractall(home, filter="data")
    assert f"six {metadata.version('six')}  MIT" in (home / "LICENSES.txt").read_text()
    code = "import six, sys; print(six.__file__); print(sys.version_info[:2])"
    ran = subprocess.run(
        ["./environment/bin/python", "-c", code],
        cwd=home.parent,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == f"{home}/lib/six.py\n{sys.version_info[:2]}\n"


def test_a_node_without_the_right_python_says_so(tmp_path: Path) -> None:
    launcher = tmp_path / "bin" / "python"
    launcher.parent.mkdir()
    launcher.write_text(environment._LAUNCHER.format(version="9.9", here="/nowhere/python"))
    launcher.chmod(0o755)
    ran = subprocess.run([launcher, "-c", ""], capture_output=True, text=True)
    assert ran.returncode == 127 and "no Python 9.9 on the PATH" in ran.stderr


def test_what_cannot_be_installed_is_told_and_leaves_the_old_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "environment.tar.gz"
    archive.write_bytes(b"an older one")
    monkeypatch.setattr(environment, "pinned", lambda gpu: [str(tmp_path / "no such package")])
    monkeypatch.setattr(sys, "argv", ["environment", str(archive)])
    assert environment.main() == 1
    assert "Expected an installation" in capsys.readouterr().err
    assert archive.read_bytes() == b"an older one"
    assert [path.name for path in tmp_path.iterdir()] == ["environment.tar.gz"]
