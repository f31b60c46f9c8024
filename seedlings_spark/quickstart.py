"""Where the quickstart puts what it makes, and what it asks of the jobs it runs."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from seedlings_spark import config, files, synthetic
from seedlings_spark.errors import CorpusError, TrainingError

_T = TypeVar("_T")
# On the drawn corpus; it is far easier than photographs.
MIN_ACCURACY = 0.9
_IMAGES_OF_SPECIES = 40


@dataclass(frozen=True)
class Places:
    """The folders of a quickstart.

    Args:
        output: The folder that holds them.
        own_images: A folder of images that is there already, or "".
    """

    output: str
    own_images: str

    @property
    def images(self) -> str:
        """Images, one folder a species."""
        return self.own_images or files.join(self.output, "images")

    @property
    def corpus(self) -> str:
        """What `prepare` writes."""
        return files.join(self.output, "corpus")

    @property
    def store(self) -> str:
        """Model versions."""
        return files.join(self.output, "store")

    @property
    def run(self) -> str:
        """What the training run leaves behind."""
        return files.join(self.output, "run")

    @property
    def report(self) -> str:
        """Numbers and plots on the test images."""
        return files.join(self.output, "report")

    @property
    def scores(self) -> str:
        """Predictions for all images."""
        return files.join(self.output, "scores")

    def check(self) -> None:
        """Refuse a folder with the results of an earlier quickstart.

        Raises:
            CorpusError: There are some.
        """
        there = [
            name
            for name in ("corpus", "store", "run", "report", "scores")
            if files.exists(getattr(self, name))
        ]
        if there:
            raise CorpusError(
                f"{self.output} with {', '.join(there)} of an earlier quickstart",
                "a new folder",
                "Remove it, or give another with --output",
            )

    def summary(self, accuracy: float) -> list[tuple[str, object]]:
        """What was made, and where."""
        return [
            ("images", self.images),
            ("corpus", self.corpus),
            ("model version", files.join(self.store, "seedlings")),
            ("training run", files.join(self.run, "metrics.jsonl")),
            ("report", files.join(self.report, "index.html")),
            ("scores", files.join(self.scores, "runs")),
            ("test accuracy", f"{accuracy:.3f}"),
        ]


def draw(images: str) -> None:
    """Draw the example corpus into a folder of this machine."""
    synthetic.write_corpus(Path(files.local_path(images)), images_per_species=_IMAGES_OF_SPECIES)


def options(places: Places, file: Path) -> Callable[[type[_T], str], _T]:
    """A function that makes a job's options: a TOML file (`conf/quickstart.toml`), and the places."""
    tables = config.read_toml(str(file))

    def make(options_class: type[_T], job: str) -> _T:
        wanted = {field.name for field in fields(options_class)}  # type: ignore[arg-type]
        paths = {"images", "corpus", "store", "run", "report"} & wanted
        values: dict[str, Any] = {name: getattr(places, name) for name in paths}
        if "output" in wanted:
            values["output"] = places.scores
        return config.make(options_class, {**tables.get(job, {}), **values}, str(file))

    return make


def require_accuracy(accuracy: float) -> None:
    """Assert that the network has learned.

    Raises:
        TrainingError: It has not.
    """
    if accuracy < MIN_ACCURACY:
        raise TrainingError(
            f"a test accuracy of {accuracy:.3f} on the drawn images",
            f"at least {MIN_ACCURACY}",
            "Something is wrong with this installation: please report it with the folder's report",
        )
