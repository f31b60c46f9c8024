"""What is fitted on validation images after training: a temperature, and the thresholds of a version's decisions.

Temperature scaling (Guo et al. 2017) is one number that makes confidence what it says.

Logits are divided by the temperature, so no prediction changes. It goes into the weights of the layer that gives the
logits: whatever computes the network, `network.keras` or `network.onnx`, gives the same calibrated probabilities.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema, scoring
from seedlings_spark.cluster import session
from seedlings_spark.corpus import Corpus
from seedlings_spark.corpus.splits import is_sampled
from seedlings_spark.errors import NetworkError
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.models import decisions, prediction
from seedlings_spark.reports import certainty
from seedlings_spark.training import network as carried

_log = logging.getLogger(__name__)
# Where the best temperature lies outside, these images do not tell one.
_COLDEST, _HOTTEST = 0.05, 20.0
# Logits that the driver takes, at most; one number is fitted to them.
_MOST_VALUES = 4_000_000
# Images that decisions are fitted on, at most: of those the share that a promise is about is exact to 0.05 points.
_MOST_IMAGES = 200_000
# Of a probability: what the network gives may differ by from what was asked for.
_TOLERANCE = 1e-5
_CARRYING = ("Activation", "Dropout", "Flatten", "Functional", "Identity", "Reshape", "Sequential", "Softmax")


def temperature(logits: NDArray[np.floating], truth: NDArray[np.integer]) -> float | None:
    """The temperature by which these logits give the lowest log loss.

    Args:
        logits: Shape (images, classes).
        truth: Shape (images,): the place of each image's class.

    Returns:
        The temperature; None where it would not lie from 0.05 to 20, as where all images are right.
    """
    # The loss is convex in the inverse of the temperature, so it has one minimum along its logarithm, too.
    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    for _ in range(60):
        span = ratio * (high - low)
        if log_loss(logits / math.exp(high - span), truth) < log_loss(logits / math.exp(low + span), truth):
            high = low + span
        else:
            low = high - span
    found = math.exp((low + high) / 2)
    return found if _COLDEST * 1.001 < found < _HOTTEST / 1.001 else None


def log_loss(logits: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    """The mean of the negative logarithm of the probability of the truth."""
    values = logits.astype(np.float64)
    values = values - values.max(axis=1, keepdims=True)
    own = values[np.arange(len(values)), truth]
    return float((np.log(np.exp(values).sum(axis=1)) - own).mean())


def calibrate(spark: SparkSession, model: PipelineModel, corpus: Corpus) -> dict[str, Any]:
    """Let a fitted pipeline give calibrated probabilities.

    Args:
        spark: The session.
        model: Its last stage is a `SeedlingsModel`; its network is replaced.
        corpus: With validation images.

    Returns:
        What the manifest says: `temperature`, `images`, and log loss and calibration error of these `before` and
        `after`; or `missing`, why nothing was changed.
    """
    last: Any = model.stages[-1]
    logits, truth = _logits(spark, model, corpus)
    found = temperature(logits, truth)
    if found is None:
        reason = f"{len(truth):,} validation images tell no temperature from {_COLDEST} to {_HOTTEST}"
        _log.warning("published without calibration: %s", reason)
        return {"missing": reason}
    try:
        _scale(last, found)
    except NetworkError as error:
        _log.warning("published without calibration: %s", error)
        return {"missing": error.found}
    about: dict[str, Any] = {"temperature": found, "images": len(truth)}
    for when, values in (("before", logits), ("after", logits / found)):
        measured = certainty.count(truth, _softmax(values)).calibration_error
        about[when] = {"log_loss": log_loss(values, truth), "calibration_error": measured}
    _log.info(
        "calibrated by a temperature of %.3f: log loss %.4f, before %.4f",
        found,
        about["after"]["log_loss"],
        about["before"]["log_loss"],
    )
    return about


def decide(
    spark: SparkSession,
    forwards: Mapping[str, prediction.ForwardTask],
    corpus: Corpus,
    classes: Sequence[str],
    *,
    coverage: float,
    max_unknown: float,
) -> dict[str, Any]:
    """Fit a version's decisions on the probabilities that scoring gives the validation images.

    Args:
        spark: The session.
        forwards: The network by the numbers that it computes with: "float32", and "int8" if it was quantised.
        corpus: With validation images.
        classes: Their names, in the order of the network's outputs.
        coverage: As `decisions.Decisions` has it.
        max_unknown: As `decisions.Decisions` has it.

    Returns:
        What the manifest says under `decisions.KEY`.

    Raises:
        CorpusError: There are too few validation images for what is promised.
    """
    images = corpus.images(spark, schema.VALIDATION)
    chosen = images.where(is_sampled(_MOST_IMAGES / max(1, corpus.num_images(schema.VALIDATION))))
    own = F.element_at(schema.PROBABILITIES, F.col("place").cast("int"))
    places = F.array_position(F.array(*map(F.lit, classes)), F.col(schema.SPECIES)).alias("place")
    true = chosen.select(schema.PATH, places)
    found = {}
    for precision, forward in forwards.items():
        with session.arrow_batches(spark, math.prod(corpus.image_size) * 3):
            rows = scoring.probabilities(spark, chosen, forward).join(true, schema.PATH)
            values = rows.select(own, F.array_max(schema.PROBABILITIES)).toPandas().to_numpy(np.float64)
        made = decisions.fit(values[:, 0], values[:, 1], coverage=coverage, max_unknown=max_unknown)
        found[precision] = made.to_dict()
        _log.info("decides, in %s, by %d validation images: %s", precision, made.images, made.words)
    return found


def words(about: dict[str, Any]) -> str:
    """What a person is told of a version's calibration."""
    if "temperature" not in about:
        return f"not calibrated: {about.get('missing', 'trained without --calibrate')}"
    return (
        f"calibrated by a temperature of {about['temperature']:.3f}, fitted on {about['images']:,} validation images;"
        " it is in the network, so all engines give calibrated probabilities"
    )


def _logits(
    spark: SparkSession, model: PipelineModel, corpus: Corpus
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits and true classes of validation images; where there are many, of the first by their content."""
    last: Any = model.stages[-1]
    labels = last.getOrDefault("labels")
    images = corpus.images(spark, schema.VALIDATION).orderBy(schema.CONTENT_HASH)
    predicted = model.transform(images.limit(max(1, _MOST_VALUES // len(labels))))
    raw = vector_to_array(F.col(last.getRawPredictionCol()))
    rows = predicted.select(schema.SPECIES, raw).collect()
    places = {name: place for place, name in enumerate(labels)}
    known = [row for row in rows if row[0] in places]
    return np.array([row[1] for row in known]), np.array([places[row[0]] for row in known])


def _scale(model: SeedlingsModel, by: float) -> None:
    """Divide a network's logits by a number, in its weights.

    Raises:
        NetworkError: Its logits do not come from a Dense layer.
    """
    network = carried.from_bytes(model.network_bytes, model._objects(model.network_bytes))
    rows = np.random.default_rng(0).integers(0, 256, (8, *network.input_shape[1:]))
    rows = rows.astype(network.inputs[0].dtype)
    before = np.asarray(network(rows, training=False), np.float64)
    layer = _last_dense(network)
    if layer is not None:
        layer.set_weights([weights / by for weights in layer.get_weights()])
    found = np.asarray(network(rows, training=False), np.float64)
    # From the less extreme probabilities to the others: those of noise may have become 0.
    powers, others = (found**by, before) if by >= 1 else (before ** (1 / by), found)
    difference = np.abs(powers / powers.sum(axis=1, keepdims=True) - others).max()
    if layer is None or not difference <= _TOLERANCE:
        raise NetworkError(
            f"a network {network.name!r} whose probabilities are no softmax of what a Dense layer gives",
            "a Dense layer with softmax at its end, or with a Softmax behind it",
            "Train without --calibrate, or let the network end so",
        )
    model._take(carried.to_bytes(network), model.history, model.record)


def _last_dense(network: Any) -> Any:
    """The Dense layer that gives the logits; None where another one does."""
    tensor = network.outputs[0]
    while True:
        operation, place, _ = tensor._keras_history
        kind = type(operation).__name__
        if kind == "Dense":
            return operation
        if kind not in _CARRYING:
            return None
        if kind in ("Functional", "Sequential"):
            tensor = operation.outputs[0]
            continue
        before = operation._inbound_nodes[place].input_tensors
        if not before:
            return None
        tensor = before[0]


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
