"""The record of what a result depends on."""

import sys
import types
from importlib import metadata

import pytest

from seedlings_spark import reproducibility


def test_versions_are_found_whatever_a_package_is_called_and_wherever_it_comes_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {"tensorflow-cpu": "2.19.1", "numpy": "1.26.4"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "pyspark", types.SimpleNamespace(__version__="4.0.0"))
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    found = reproducibility.package_versions()
    assert (found["tensorflow"], found["pyspark"], found["numpy"]) == ("2.19.1", "4.0.0", "1.26.4")
    assert "keras" not in found and "tensorflow-cpu" not in found
