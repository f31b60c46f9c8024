"""From a fitted pipeline, or a network of somebody's own, to a published version."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import display, files, problems, reproducibility, schema, scoring
from seedlings_spark.choices import INT8, ONNXRUNTIME
from seedlings_spark.cluster import session
from seedlings_spark.corpus import Corpus, look_alikes
from seedlings_spark.corpus.splits import is_sampled
from seedlings_spark.errors import NetworkError, OptionError, SeedlingsError, StoreError
from seedlings_spark.estimator import SeedlingsModel, keep_network_once
from seedlings_spark.kinds import Kind
from seedlings_spark.models import decisions, export, prediction
from seedlings_spark.models.store import INT8 as INT8_FILE
from seedlings_spark.models.store import (
    NUMBERS,
    ONNX,
    PROFILE,
    RESERVED_KEYS,
    THRESHOLDS,
    ModelStore,
    ModelVersion,
)
from seedlings_spark.reports import drift, plots
from seedlings_spark.workflow import calibration, runs
from seedlings_spark.workflow.pipeline import finite, load_network, some_images
from seedlings_spark.workflow.predicting import (
    check_fits,
    check_stages,
    evaluated,
    load,
    predictions,
)

_log = logging.getLogger(__name__)

# Images of a split that a profile is made of, and those of them that the network is asked about: so many, or so many of
# each species, on the average. A share is then sure to about a percent, and more would take what a training takes.
_PROFILE_IMAGES, _PREDICTED_IMAGES, _PREDICTED_OF_SPECIES = 20_000, 2_000, 50
# Of the validation images, those that ONNX Runtime and Keras are compared on, and their pixels, by the driver.
_COMPARED_IMAGES, _COMPARED_BYTES = 256, 32 * 1024 * 1024
# What `import_network` may be told of a network's outputs.
OUTPUTS = ("auto", "probabilities", "logits")


@dataclass(frozen=True)
class Promotion:
    """Whether a new version is to become the current one.

    Args:
        is_due: Whether it is.
        reason: Why, where something was compared.
    """

    is_due: bool
    reason: str


def summary(version: ModelVersion, run: str, promotion: Promotion) -> list[tuple[str, object]]:
    """What `train` prints at its end."""
    metrics, kept = version.manifest["metrics"], version.manifest["kept"]
    calibrated = version.manifest.get("calibration")
    thresholds = version.manifest.get(THRESHOLDS)
    promoted = "now current" if promotion.is_due else "not promoted"
    return [
        ("version", f"{version.name} {version.version} ({promoted})"),
        *([("compared", promotion.reason)] if promotion.reason else []),
        ("epoch", f"{kept['epoch']}, the {kept['keep']} one"),
        ("stored in", display.Whole(version.path)),
        ("run", display.Whole(run)),
        ("precision", version.manifest["precision"]),
        *([("thresholds", _thresholds_in_words(version))] if thresholds else []),
        *([("probabilities", calibration.words(calibrated))] if calibrated else []),
        *[(name, _shown(value)) for name, value in metrics.items()],
    ]


def _thresholds_in_words(version: ModelVersion) -> str:
    """From which probabilities species are named, and by how many pictures that was chosen."""
    values, images = version.reading.thresholds, version.manifest[THRESHOLDS].get("images", 0)
    if not images:
        return "0.5 for each species"
    return (
        f"{min(values):.2f} to {max(values):.2f}, by the F1 of each species on {images:,} validation images"
    )


def _shown(value: object) -> str:
    """A metric's value, or its values, for a person to read."""
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return "not finite" if value is None else f"{value:.4f}"


def _network_of(model: PipelineModel) -> SeedlingsModel:
    last = model.stages[-1] if model.stages else None
    if not isinstance(last, SeedlingsModel):
        raise StoreError(
            f"a pipeline whose last stage is a {type(last).__name__}",
            "a SeedlingsModel at its end, as pipeline.fit leaves it",
            "Fit a pipeline that ends in a SeedlingsEstimator",
        )
    return last


def profile(spark: SparkSession, model: PipelineModel, corpus: Corpus) -> drift.Profile:
    """What scoring runs are compared with: statistics of the corpus' images, predictions for its validation split.

    The training split's own predictions would be surer than those for any new image; they are taken where there is
    no validation split. At most `_PROFILE_IMAGES` images of a split are looked at, and fewer by the network, chosen by
    their content.

    Args:
        spark: The session.
        model: A fitted pipeline whose last stage is a `SeedlingsModel`.
        corpus: That it was trained on.
    """
    last = _network_of(model)
    task = last.forward_task(spark, are_pixels=True)
    said = drift.CONFIDENCE
    if corpus.kind == Kind.REGRESSION:
        said, (mean, deviation) = drift.VALUE, corpus.scale
        task = replace(task, reading=replace(task.reading, mean=mean, deviation=deviation))

    def some(split: str, count: int) -> DataFrame:
        return corpus.images(spark, split).where(is_sampled(count / max(1, corpus.num_images(split))))

    classes = last.getOrDefault("labels")
    count = min(_PROFILE_IMAGES, max(_PREDICTED_IMAGES, _PREDICTED_OF_SPECIES * len(classes)))
    asked = some(schema.VALIDATION if corpus.num_images(schema.VALIDATION) else schema.TRAIN, count)
    predicted = scoring.profile_of_images(spark, asked, task, corpus.image_size, classes)
    seen = some(schema.TRAIN, _PROFILE_IMAGES).union(some(schema.VALIDATION, _PROFILE_IMAGES))
    histograms = scoring.profile_of_pixels(spark, seen, corpus.image_size).histograms
    return drift.Profile(predicted.species, {said: predicted.histograms[said], **histograms})


def use_onnx(
    model: PipelineModel, spark: SparkSession | None = None, corpus: Corpus | None = None
) -> dict[str, object]:
    """Let a fitted pipeline compute by ONNX Runtime from now on, if its network can be had for that.

    Args:
        model: A fitted pipeline whose last stage is a `SeedlingsModel`.
        spark: The session, with a corpus.
        corpus: On whose validation images the two are compared, on at most `_COMPARED_IMAGES`; without, or where it has
            none, on drawn ones.

    Returns:
        What the manifest says of it under `onnx`: how it compares with Keras, or `missing`, the reason for that.
    """
    last = _network_of(model)
    try:
        rows = None if spark is None or corpus is None else some_pixels(spark, corpus, schema.VALIDATION)
        return last.use_onnx(rows)
    except NetworkError as error:
        _log.warning("published without network.onnx: %s", error)
        return {"missing": error.found}


def some_pixels(spark: SparkSession, corpus: Corpus, split: str) -> NDArray[np.uint8] | None:
    """Some images of a split, chosen by their content, shape (images, height, width, 3); None where there are none."""
    count = max(1, min(_COMPARED_IMAGES, _COMPARED_BYTES // (3 * math.prod(corpus.image_size))))
    pixels, _ = some_images(spark, corpus, split, count)
    return pixels if len(pixels) else None


def quantized(
    spark: SparkSession, onnx: bytes, corpus: Corpus, classes: Sequence[str]
) -> tuple[bytes, dict[str, object]]:
    """A network in whole numbers of 8 bits, if its accuracy on the validation split allows for it.

    Args:
        spark: The session.
        onnx: The content of the network's ONNX file.
        corpus: That it was trained on; the ranges of numbers are found on at most `_COMPARED_IMAGES` training images.
        classes: Of the network.

    Returns:
        The content of the ONNX file, and what the manifest says of it under `int8`.

    Raises:
        NetworkError: It falls by more than `export.MOST_LOST`, there are no validation images, or it cannot be
            quantised.
    """
    rows = some_pixels(spark, corpus, schema.TRAIN)
    if rows is None or not corpus.num_images(schema.VALIDATION):
        raise NetworkError(
            f"{corpus.path} without training or without validation images",
            "both: to quantise with, and to compare accuracies on",
            "Prepare a corpus with larger --split-shares",
        )
    content = export.to_int8(onnx, rows)
    accuracies = {
        precision: _accuracy(spark, network, precision, corpus, classes)
        for precision, network in (("float32", onnx), (INT8, content))
    }
    lost = accuracies["float32"] - accuracies[INT8]
    if lost > export.MOST_LOST + 1e-9:  # rounding
        raise NetworkError(
            f"a network whose accuracy on the validation images falls from {accuracies['float32']:.4f} to"
            f" {accuracies[INT8]:.4f} in int8",
            f"a fall of {export.MOST_LOST:g} at most",
            "Use the version as it is",
        )
    return content, {
        "calibrated_on": len(rows),
        "compared_on": corpus.num_images(schema.VALIDATION),
        "accuracy": accuracies,
    }


def _accuracy(
    spark: SparkSession, network: bytes, precision: str, corpus: Corpus, classes: Sequence[str]
) -> float:
    """Of an ONNX file on the validation split, by ONNX Runtime as in scoring."""
    task = prediction.ForwardTask(network, precision, 1, session.task_cpus(spark), engine=ONNXRUNTIME)
    images = corpus.images(spark, schema.VALIDATION)
    predicted = scoring.predicted_species(spark, images, task, classes)
    true = images.select(schema.PATH, schema.SPECIES)
    is_right = F.col(schema.PREDICTED_SPECIES) == F.col(schema.SPECIES)
    with session.arrow_batches(spark, math.prod(corpus.image_size) * 3):
        num_right = true.join(predicted, schema.PATH).where(is_right).count()
    return num_right / corpus.num_images(schema.VALIDATION)


def promotion(
    spark: SparkSession,
    store: ModelStore,
    model: PipelineModel,
    corpus: Corpus,
    when: str,
    int8: bytes = b"",
) -> Promotion:
    """Decide whether a new version becomes the current one.

    Args:
        spark: The session.
        store: Where the current version is.
        model: The new one, not yet published.
        corpus: With the validation images that both are compared on.
        when: "always", "never", or "better": if more of them are named rightly than by the current version.
        int8: The content of its quantised network's ONNX file, by which it will be scored; empty for none.
    """
    if when != "better":
        return Promotion(when == "always", "")
    try:
        version = store.verify() if store.current() else None
    except StoreError as error:
        return Promotion(False, f"the current version cannot be compared with: {error}")
    if version is None:
        return Promotion(True, "there was no current version")
    if not corpus.num_images(schema.VALIDATION):
        return Promotion(False, f"there are no validation images to compare with {version.version} on")
    classes = model.stages[-1].getOrDefault("labels")
    if others := sorted({*classes} ^ {*version.classes}):
        return Promotion(False, f"{version.version} has other classes; not in both are {', '.join(others)}")

    def accuracy(predicted: DataFrame) -> float:
        return evaluated(predicted, corpus, schema.VALIDATION, classes).accuracy

    try:
        theirs = accuracy(predictions(spark, version, corpus, schema.VALIDATION))
    except SeedlingsError as error:
        return Promotion(False, f"{version.version} cannot be compared with: {error}")
    if int8:
        ours = _accuracy(spark, int8, INT8, corpus, classes)
    else:
        ours = accuracy(model.transform(corpus.images(spark, schema.VALIDATION)))
    return Promotion(
        ours > theirs,
        f"accuracy {ours:.4f} on the validation images, {theirs:.4f} of {version.version}",
    )


def publish(
    store: ModelStore,
    model: PipelineModel,
    *,
    about: Mapping[str, Any],
    promote: bool,
    profile: drift.Profile | None = None,
    int8: bytes = b"",
) -> ModelVersion:
    """Publish a fitted pipeline whose last stage is a `SeedlingsModel`.

    Args:
        store: Where to.
        model: The fitted pipeline.
        about: What the manifest shall say of corpus, options and classes, and of `onnx` if `use_onnx` was called.
        promote: Whether it becomes the current version.
        profile: Profile of the corpus, with which scoring runs are compared.
        int8: The content of the quantised network's ONNX file; empty for none.
    """
    last = _network_of(model)
    about = _with_kind(about, last)
    about = {"onnx": use_onnx(model), **about} if "onnx" not in about else about
    history = last.history
    # JSON has no NaN; what is not finite is null there.
    written = finite(history)
    keep = about.get("options", {}).get("keep", "last")
    epoch = _kept_epoch(history, keep)

    def build(folder: str) -> None:
        model.write().save(files.join(folder, "model"))
        check_stages(files.join(folder, "model"))  # or it would be refused when it is wanted
        keep_network_once(folder, last.uid)
        if int8:
            files.write_bytes(files.join(folder, INT8_FILE), int8)
        if profile is not None:
            files.write_text(files.join(folder, PROFILE), json.dumps(profile.to_json()) + "\n")
        if history:
            files.write_bytes(
                files.join(folder, "report", "learning_curves.png"),
                plots.learning_curves(history, epoch + 1, last.record.get("rows_of_quarter", ())),
            )
            files.write_text(files.join(folder, "report", "history.json"), json.dumps(written) + "\n")

    manifest = {
        **about,
        "classes": last.getOrDefault("labels"),
        "precision": last.getOrDefault("precision"),
        "metrics": {name: values[epoch] for name, values in written.items()},
        "history": written,
        **({"kept": {"keep": keep, "epoch": epoch + 1}} if history else {}),
        "training": finite(last.record),
        "versions": reproducibility.package_versions(),
    }
    version = store.publish(build, manifest, promote=promote)
    _log.info(
        "published %s %s%s: a network of %s bytes%s",
        version.name,
        version.version,
        " (now current)" if promote else "",
        f"{len(last.network_bytes):,}",
        f" for {len(version.classes)} classes" if version.classes else "",
    )
    return version


def _with_kind(about: Mapping[str, Any], model: SeedlingsModel) -> Mapping[str, Any]:
    """What a manifest says, and of a model of lists or numbers that it is one, with its thresholds.

    Raises:
        StoreError: The model names no species, and was not trained on a corpus of numbers.
    """
    kind = model.getOrDefault("kind")
    if kind == problems.BINARY or (kind == problems.REGRESSION and NUMBERS not in about):
        raise StoreError(
            f"a model of kind {kind!r}",
            "one of classification or multilabel, which names species, or one that train has made of numbers",
            "Train a network with an output for each species, and a categorical loss or a binary one",
        )
    if kind == problems.REGRESSION:
        return {**about, "kind": kind}
    if kind != problems.MULTILABEL:
        return about
    fitted = {**about.get(THRESHOLDS, {}), "values": list(model._thresholds())}
    return {**about, "kind": kind, THRESHOLDS: fitted}


def publish_trained(
    spark: SparkSession,
    store: ModelStore,
    model: PipelineModel,
    corpus: Corpus,
    *,
    about: Mapping[str, Any],
    check: Callable[[], None] = lambda: None,
) -> tuple[ModelVersion, Promotion]:
    """Publish what was trained on a corpus with a profile of that, and promote it if its options say so.

    Args:
        spark: The session.
        store: Where to.
        model: The fitted pipeline.
        corpus: That it was fitted to.
        about: What the manifest says besides.
        check: Called before anything is published; raises if the run is not ours any more.
    """
    known: dict[str, Any] = {}
    # First, so that all that follows is computed as scoring will be.
    if about["options"].get("calibrate"):
        known["calibration"] = calibration.calibrate(spark, model, corpus)
    onnx = use_onnx(model, spark, corpus)
    if corpus.kind == Kind.MULTILABEL:
        known[THRESHOLDS] = _thresholds(spark, model, corpus)
    if corpus.kind == Kind.REGRESSION:
        mean, deviation = corpus.scale
        known[NUMBERS] = {"column": corpus.manifest["number_column"], "mean": mean, "deviation": deviation}
    int8, told_of_int8 = b"", dict[str, object]()
    if about["options"].get("quantize"):
        int8, told_of_int8 = _quantized_if_allowed(spark, _network_of(model), corpus)
    asked = {name: about["options"].get(name, 0.0) for name in ("coverage", "max_unknown")}
    if any(asked.values()):
        known[decisions.KEY] = _decisions(spark, _network_of(model), int8, corpus, asked)
    made = profile(spark, model, corpus)
    decided = promotion(spark, store, model, corpus, about["options"]["promote"], int8)
    check()
    told = {
        **about,
        **known,
        **told_of_int8,
        "onnx": onnx,
        "promotion": {"is_due": decided.is_due, "reason": decided.reason},
        "training_seconds": runs.seconds(about["run_path"]),
    }
    version = publish(store, model, about=told, promote=decided.is_due, profile=made, int8=int8)
    return version, decided


def _thresholds(spark: SparkSession, model: PipelineModel, corpus: Corpus) -> dict[str, Any]:
    """Fit the thresholds of a pipeline's network on the validation images; what the manifest says of them."""
    last = _network_of(model)
    if not corpus.num_images(schema.VALIDATION):
        _log.warning("there are no validation images: each species is named from a probability of 0.5")
        return {"images": 0}
    images = PipelineModel(model.stages[:-1]).transform(corpus.images(spark, schema.VALIDATION))
    with session.arrow_batches(spark, math.prod(corpus.image_size) * 3):
        found = last.fit_thresholds(images)
    return found.to_dict()


def _decisions(
    spark: SparkSession, model: SeedlingsModel, int8: bytes, corpus: Corpus, asked: Mapping[str, float]
) -> dict[str, Any]:
    """The decisions of each of the networks that scoring may take."""
    forwards = {decisions.FLOAT32: model.forward_task(spark, are_pixels=True)}
    forwards |= {INT8: _int8_task(spark, int8)} if int8 else {}
    labels = model.getOrDefault("labels")
    return calibration.decide(spark, forwards, corpus, labels, **asked)


def _int8_task(spark: SparkSession, network: bytes) -> prediction.ForwardTask:
    return prediction.ForwardTask(network, INT8, 1, session.task_cpus(spark), engine=ONNXRUNTIME)


def _quantized_if_allowed(
    spark: SparkSession, model: SeedlingsModel, corpus: Corpus
) -> tuple[bytes, dict[str, object]]:
    """As `quantized`; what has been trained is published in any case, and the manifest says why it has no such form."""
    try:
        if not model.onnx_bytes:
            raise NetworkError("a network that has no ONNX form", "one that has", "Use the version as it is")
        content, about = quantized(spark, model.onnx_bytes, corpus, model.getOrDefault("labels"))
    except NetworkError as error:
        _log.warning("published without %s: %s", INT8_FILE, error)
        return b"", {INT8: {"missing": error.found}}
    return content, {INT8: about}


def import_network(
    store: ModelStore,
    file: str,
    classes: Sequence[str],
    *,
    aspect: str,
    promote: bool,
    outputs: str = "auto",
) -> ModelVersion:
    """Publish a `.keras` file that was trained elsewhere, over raw pixels.

    What is published gives probabilities: a network that gives logits gets a softmax.

    Args:
        store: Where to.
        file: Path on any file system.
        classes: Names, in the order of the network's outputs.
        aspect: How images are brought to the network's size.
        promote: Whether it becomes the current version.
        outputs: "probabilities", "logits", or "auto": logits where the loss that it was saved with says so.

    Raises:
        NetworkError: It is no image classifier of so many classes.
    """
    if not file.endswith(".keras"):
        raise NetworkError(
            f"{file}, whose name does not end in .keras",
            "a network with its weights",
            "Save it with model.save('name.keras')",
        )
    if not all(classes) or len(set(classes)) != len(classes):
        raise OptionError(
            f"--classes {' '.join(map(repr, classes))}", "different names, none empty", "Correct --classes"
        )
    if pair := look_alikes(classes):
        raise OptionError(
            f"--classes with two names that look alike, {pair[0]} and {pair[1]}",
            "names that a person can tell apart",
            "Correct --classes",
        )
    loaded, loss = load_network(file)
    shape, given = tuple(loaded.input_shape[1:]), tuple(loaded.output_shape[1:])
    if len(shape) != 3 or shape[2] != 3 or given != (len(classes),):
        raise NetworkError(
            f"{file}, which takes {shape} and gives {given}, for {len(classes)} class names",
            "a network that takes (height, width, 3) and gives one output for each class name",
            "Correct --classes, or give a network of another shape",
        )
    if outputs == "logits" or (outputs == "auto" and problems.config_takes_logits(loss)):
        loaded = problems.with_head(loaded, ("softmax",))
    problems.check_probabilities(loaded, file)
    model = PipelineModel([SeedlingsModel.from_network(loaded, classes)])
    about = {"image_size": list(shape[:2]), "aspect": aspect, "imported_from": file}
    return publish(store, model, about=about, promote=promote)


def upgrade(store: ModelStore, version: str, *, promote: bool) -> ModelVersion:
    """Publish a version anew with its network for ONNX Runtime, which earlier releases did not make.

    Args:
        store: Where it is.
        version: Its name, or `current`.
        promote: Whether the new one becomes the current version.

    Raises:
        StoreError: It is damaged, or has one.
        NetworkError: Its network has no ONNX form. Nothing is published.
    """
    old = store.verify(version).require_one_species("models upgrade")
    if old.has_onnx:
        raise StoreError(
            f"{old.name} {old.version}, which has {ONNX}",
            "a version of an earlier release",
            "Use it as it is",
        )
    model = load(old)
    known = {key: value for key, value in old.manifest.items() if key not in (*RESERVED_KEYS, "promotion")}
    about = {**known, "onnx": _network_of(model).use_onnx(), "upgraded_from": old.version}
    return publish(store, model, about=about, promote=promote, profile=scoring.profile_of_corpus(old))


def quantize(store: ModelStore, version: str, corpus: Corpus, *, promote: bool) -> ModelVersion:
    """Publish a version anew, with its network in whole numbers of 8 bits beside the others.

    Args:
        store: Where it is.
        version: Its name, or `current`.
        corpus: That it was trained on.
        promote: Whether the new one becomes the current version.

    Raises:
        CorpusError: The corpus has images of another size.
        NetworkError: It loses too much accuracy by that. Nothing is published.
        StoreError: It is damaged, or has no ONNX file.
    """
    old = store.verify(version).require_one_species("models quantize")
    if not old.has_onnx or old.has_int8:
        raise StoreError(
            f"{old.name} {old.version} {'with' if old.has_int8 else 'without'} {INT8_FILE if old.has_int8 else ONNX}",
            f"a version with {ONNX} that has not been quantised",
            "Use it as it is" if old.has_int8 else "Call models upgrade first",
        )
    check_fits(old, corpus, schema.VALIDATION)
    model = load(old)
    spark = SparkSession.builder.getOrCreate()
    content, about_int8 = quantized(spark, _network_of(model).onnx_bytes, corpus, old.classes)
    known = {key: value for key, value in old.manifest.items() if key not in (*RESERVED_KEYS, "promotion")}
    about = {**known, INT8: about_int8, "quantized_from": old.version}
    if promised := known.get(decisions.KEY):
        asked = {name: promised[decisions.FLOAT32][name] for name in ("coverage", "max_unknown")}
        about[decisions.KEY] = {
            **promised,
            **calibration.decide(spark, {INT8: _int8_task(spark, content)}, corpus, old.classes, **asked),
        }
    return publish(
        store, model, about=about, promote=promote, profile=scoring.profile_of_corpus(old), int8=content
    )


def _kept_epoch(history: Mapping[str, Sequence[float]], keep: str) -> int:
    """The epoch, from 0, whose weights `KeptWeights` has left in the network."""
    losses = history.get("val_loss", [])
    if keep != "best" or not losses:
        return max(map(len, history.values()), default=0) - 1
    return min(range(len(losses)), key=lambda epoch: (math.isnan(losses[epoch]), losses[epoch]))
