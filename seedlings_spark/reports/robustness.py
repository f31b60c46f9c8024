"""How a version's accuracy falls as pictures get worse: counted by executors, with the scoring engine.

Each picture is predicted as it is and in every kind and strength of `images.corruptions` or `models.attacks`, in one
task, so that its pixels travel once. What comes back are places of classes; all numbers are a pure function of them.
"""

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import images, schema
from seedlings_spark.cluster import runtime, session
from seedlings_spark.errors import SeedlingsError
from seedlings_spark.images import corruptions
from seedlings_spark.models import attacks, prediction, saliency
from seedlings_spark.reports import drift
from seedlings_spark.reports.evaluation import wilson

_log = logging.getLogger(__name__)
# Of more pictures so many are taken, those of the least content hashes, which is any: a share of them is known to 1.4
# points, and each costs as much as 46 of an evaluation.
MOST_IMAGES = 5_000
# Likewise; each costs as much as some 150.
MOST_ATTACKED = 500
# A kind breaks a version at the strength that takes more than this share of its right answers.
BREAKS = 0.1
# Pictures of each kind, and length of a thumbnail's longer side in pixels.
_NUM_EXAMPLES, _THUMBNAIL = 3, 128
_TASKS_PER_SLOT = 4
# Pictures that a task holds in a further copy at once.
_ROWS = 64
_NAMES = (schema.CONTENT_HASH, schema.PATH, schema.SPECIES)
_PREDICTED, _BEFORE, _AFTER = "predicted", "before", "after"


@dataclass(frozen=True)
class Disturbance:
    """What is done to pictures, and who predicts them then.

    Args:
        forward: The network.
        gradients: The same as Keras has it, for attacks; None for corruptions.
    """

    forward: prediction.ForwardTask
    gradients: saliency.SaliencyTask | None = None

    @property
    def kinds(self) -> tuple[corruptions.Kind, ...]:
        """What is done."""
        return corruptions.KINDS if self.gradients is None else attacks.KINDS

    @property
    def most_images(self) -> int:
        """Of more pictures so many are taken."""
        return MOST_IMAGES if self.gradients is None else MOST_ATTACKED


@dataclass(frozen=True)
class Curve:
    """What one kind of corruption does.

    Attributes:
        kind: The kind.
        right: Pictures that are right at each strength, the weakest first.
        lost: Of those that are right as they are, how many are wrong at each strength.
        breaks: The least strength that takes more than `BREAKS` of the right answers; None where none does.
    """

    kind: corruptions.Kind
    right: tuple[int, ...]
    lost: tuple[int, ...]
    breaks: int | None


@dataclass(frozen=True)
class Example:
    """A picture that is right as it is, and wrong when it is corrupted.

    Attributes:
        path: Of its file.
        kind: Name of the corruption.
        strength: From 1.
        truth: Its species.
        predicted: What it is taken for.
        before: The picture as it is, as a JPEG.
        after: The corrupted one.
    """

    path: str
    kind: str
    strength: int
    truth: str
    predicted: str
    before: bytes
    after: bytes


@dataclass(frozen=True)
class Robustness:
    """Accuracy by kind and strength.

    Attributes:
        num_images: Pictures that were corrupted.
        right: Those that are right as they are.
        curves: One for each kind.
        examples: At the strength that breaks the version, or where none does, at the highest.
    """

    num_images: int
    right: int
    curves: tuple[Curve, ...]
    examples: tuple[Example, ...] = ()

    @property
    def accuracy(self) -> float:
        """Of the pictures as they are."""
        return self.right / self.num_images

    def mean(self, curve: Curve | None = None) -> float:
        """The mean corruption accuracy: over all strengths of a kind, or of all kinds."""
        counts = [curve.right] if curve is not None else [each.right for each in self.curves]
        return float(np.mean(counts) / self.num_images)

    def to_dict(self) -> dict[str, object]:
        """The numbers, as JSON can hold them."""
        return {
            "images": self.num_images,
            "accuracy": self.accuracy,
            "mean_corruption_accuracy": self.mean(),
            "kinds": {
                each.kind.name: {
                    "unit": each.kind.unit,
                    "levels": list(each.kind.levels),
                    "accuracy": [count / self.num_images for count in each.right],
                    "accuracy_intervals": [list(wilson(count, self.num_images)) for count in each.right],
                    "mean_accuracy": self.mean(each),
                    "breaks_at": each.breaks,
                }
                for each in self.curves
            },
        }

    def to_page(self) -> list[list[object]]:
        """What the page's script draws: of each kind its name, accuracies from strength 0, and where it breaks."""
        return [
            [
                each.kind.name,
                [count / self.num_images for count in (self.right, *each.right)],
                each.breaks,
            ]
            for each in self.curves
        ]


def counted(
    truth: npt.NDArray[np.integer],
    predicted: npt.NDArray[np.integer],
    kinds: Sequence[corruptions.Kind] = corruptions.KINDS,
) -> Robustness:
    """The numbers of some pictures.

    Args:
        truth: Shape (pictures,): the place of each one's true class.
        predicted: Shape (pictures, 1 + kinds x strengths): the class that each is taken for, as it is, and in each
            strength of each kind.
        kinds: In the order of the columns.
    """
    is_right = predicted == truth[:, None]
    clean = is_right[:, 0]
    kept = int(clean.sum())
    of_kinds = is_right[:, 1:].reshape(len(truth), len(kinds), corruptions.STRENGTHS)
    curves = []
    for place, kind in enumerate(kinds):
        right = of_kinds[:, place]
        lost = (clean[:, None] & ~right).sum(axis=0).tolist()
        broken = [strength for strength, count in enumerate(lost, 1) if count > BREAKS * kept]
        curves.append(
            Curve(kind, tuple(right.sum(axis=0).tolist()), tuple(lost), broken[0] if broken else None)
        )
    return Robustness(len(truth), kept, tuple(curves))


def robustness(
    predictions: DataFrame, pixels: DataFrame, classes: Sequence[str], disturbance: Disturbance
) -> Robustness:
    """Corrupt or attack pictures and predict them, by Spark.

    Args:
        predictions: As `schema.EVALUATED`.
        pixels: The same pictures, as `schema.CORPUS`.
        classes: The species, in the order of the network's outputs.
        disturbance: What is done to them.

    Raises:
        SeedlingsError: A picture was lost on the way.
    """
    # Copies of a picture are in a corpus, each under its path: they count as they do in all other numbers.
    hashes = predictions.select(schema.CONTENT_HASH).orderBy(schema.CONTENT_HASH)
    last = hashes.limit(disturbance.most_images).agg(F.max(schema.CONTENT_HASH)).collect()[0][0]
    is_chosen = F.col(schema.CONTENT_HASH) <= last
    count = predictions.where(is_chosen).count()
    words = ", ".join(kind.name for kind in disturbance.kinds)
    _log.info(
        "predicting %s pictures in %d strengths of each: %s", f"{count:,}", corruptions.STRENGTHS, words
    )
    rows = pixels.where(is_chosen).select(*_NAMES, schema.HEIGHT, schema.WIDTH, schema.IMAGE)
    found = sorted(_predicted_by_executors(rows, count, disturbance, classes).collect())
    if len(found) != count:
        raise SeedlingsError(
            f"predictions of {len(found):,} corrupted pictures",
            f"those of {count:,}",
            "This is a fault of the program or of the file system. Run evaluate again",
        )
    truth = np.array([classes.index(row[schema.SPECIES]) for row in found])
    taken = np.array([row[_PREDICTED] for row in found])
    numbers = counted(truth, taken, disturbance.kinds)
    examples = _chosen(numbers, truth, taken)
    wanted = {(found[row][0], kind, strength) for row, kind, strength in examples}
    drawn = _drawn_by_executors(rows, wanted, disturbance, classes)
    shown = (
        Example(
            found[row][schema.PATH],
            disturbance.kinds[kind].name,
            strength,
            found[row][schema.SPECIES],
            classes[taken[row, _column(kind, strength)]],
            *drawn[found[row][0], kind, strength],
        )
        for row, kind, strength in examples
    )
    return replace(numbers, examples=tuple(shown))


def _predicted_by_executors(
    rows: DataFrame, count: int, disturbance: Disturbance, classes: Sequence[str]
) -> DataFrame:
    """Of each picture, by its content, the classes that it is taken for: as `counted` takes them."""
    spark = rows.sparkSession
    tasks = max(1, min(count, _TASKS_PER_SLOT * session.num_slots(spark)))

    def predicted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        done = _Done(disturbance, classes)
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield _predicted(done, batch.slice(start, _ROWS))

    layout = ", ".join(f"{name} string" for name in _NAMES)
    with session.python_environment(spark, runtime.worker_environment(disturbance.forward.threads)):
        spread = rows.repartition(tasks, schema.CONTENT_HASH)
        return spread.mapInArrow(predicted, f"{layout}, {_PREDICTED} array<int>")


def _column(kind: int, strength: int) -> int:
    """Where in a row of predictions a kind and strength stands."""
    return 1 + kind * corruptions.STRENGTHS + strength - 1


class _Done:
    """A disturbance in a task, which keeps the network that it attacks."""

    def __init__(self, disturbance: Disturbance, classes: Sequence[str]) -> None:
        self.kinds, self.forward = disturbance.kinds, disturbance.forward
        self._places = {name: place for place, name in enumerate(classes)}
        self._gradients = disturbance.gradients

    @functools.cached_property
    def _attacker(self) -> attacks.Attacker | None:
        return None if self._gradients is None else attacks.Attacker(self._gradients)

    def __call__(self, batch: pa.RecordBatch, kind: int, strength: int) -> images.Pixels:
        """The pictures of a batch with one kind of disturbance: shape (pictures, height, width, 3)."""
        names, pixels = batch[schema.CONTENT_HASH].to_pylist(), drift.pixels_of(batch)
        if self._attacker is None:
            changed = [
                corruptions.corrupted(each, self.kinds[kind], strength, name)
                for name, each in zip(names, pixels, strict=True)
            ]
            return np.stack(changed)
        truth = np.array([self._places[name] for name in batch[schema.SPECIES].to_pylist()])
        return self._attacker.attacked(pixels, truth, self.kinds[kind], strength)


def _predicted(done: _Done, batch: pa.RecordBatch) -> pa.RecordBatch:
    network = prediction.forward(done.forward)

    def classes_of(pixels: images.Pixels) -> npt.NDArray[np.integer]:
        outputs = network.predict(pixels)
        prediction.check_finite(outputs)
        return np.asarray(outputs.argmax(axis=1))

    found = [classes_of(drift.pixels_of(batch))]
    for kind in range(len(done.kinds)):
        for strength in range(1, corruptions.STRENGTHS + 1):
            found.append(classes_of(done(batch, kind, strength)))
    lists = pa.array(np.stack(found, axis=1).tolist(), pa.list_(pa.int32()))
    columns = [batch.column(place) for place in range(len(_NAMES))]
    return pa.RecordBatch.from_arrays([*columns, lists], [*_NAMES, _PREDICTED])


def _chosen(
    numbers: Robustness, truth: npt.NDArray[np.integer], taken: npt.NDArray[np.integer]
) -> list[tuple[int, int, int]]:
    """Of each kind the first pictures that it breaks, as (row, kind, strength)."""
    found = []
    for place, curve in enumerate(numbers.curves):
        strength = curve.breaks or corruptions.STRENGTHS
        is_lost = (taken[:, 0] == truth) & (taken[:, _column(place, strength)] != truth)
        found += [(int(row), place, strength) for row in np.flatnonzero(is_lost)[:_NUM_EXAMPLES]]
    return found


def _drawn_by_executors(
    rows: DataFrame,
    wanted: Iterable[tuple[str, int, int]],
    disturbance: Disturbance,
    classes: Sequence[str],
) -> Mapping[tuple[str, int, int], tuple[bytes, bytes]]:
    """Thumbnails before and after, of pictures by (content hash, kind, strength)."""
    of_picture: dict[str, list[tuple[int, int]]] = {}
    for name, kind, strength in sorted(wanted):
        of_picture.setdefault(name, []).append((kind, strength))
    if not of_picture:
        return {}

    def drawn(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        done = _Done(disturbance, classes)
        for batch in batches:
            for place, name in enumerate(batch[schema.CONTENT_HASH].to_pylist()):
                one = batch.slice(place, 1)
                found = [
                    {
                        schema.CONTENT_HASH: name,
                        "kind": kind,
                        "strength": strength,
                        _BEFORE: images.thumbnail(drift.pixels_of(one)[0], _THUMBNAIL),
                        _AFTER: images.thumbnail(done(one, kind, strength)[0], _THUMBNAIL),
                    }
                    for kind, strength in of_picture[name]
                ]
                yield pa.RecordBatch.from_pylist(found, layout)

    layout = pa.schema(
        [
            (schema.CONTENT_HASH, pa.string()),
            ("kind", pa.int32()),
            ("strength", pa.int32()),
            (_BEFORE, pa.binary()),
            (_AFTER, pa.binary()),
        ]
    )
    few = rows.where(F.col(schema.CONTENT_HASH).isin(list(of_picture)))
    names = f"{schema.CONTENT_HASH} string, kind int, strength int, {_BEFORE} binary, {_AFTER} binary"
    environment = runtime.worker_environment(disturbance.forward.threads)
    with session.python_environment(rows.sparkSession, environment):
        table = few.mapInArrow(drawn, names)
    return {tuple(row[:3]): (bytes(row[3]), bytes(row[4])) for row in table.collect()}
