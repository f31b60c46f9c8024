"""Names that others have written down: what the package offers, and what saved pipelines name."""

import importlib
import subprocess
import sys

import seedlings_spark as ss
from tests.conftest import ROOT


def test_what_the_package_offers_is_there_and_says_what_it_is() -> None:
    for name in ss.__all__:
        assert getattr(ss, name).__doc__, name


def test_what_saved_pipelines_name_is_there_under_these_names() -> None:
    for path in (
        "estimator.SeedlingsEstimator",
        "estimator.SeedlingsModel",
        "elephas.ElephasEstimator",
        "elephas.ElephasTransformer",
        "features.ImageStandardizer",
        "features.ImageStandardizerModel",
    ):
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(f"seedlings_spark.{module}"), name)
        assert f"{found.__module__}.{found.__name__}" == f"seedlings_spark.{path}"


def test_parts_of_the_estimators_room_are_imported_in_executors_without_keras() -> None:
    """Functions of theirs travel to executors by name, which imports their package first."""
    program = "import sys, seedlings_spark.estimator.features, seedlings_spark.features\n"
    program += "sys.exit('keras' in sys.modules or 'elephas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
