"""A version's predictions of a corpus, and their numbers."""

import dataclasses
import datetime
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StructType

from seedlings_spark import errors, files, schema, scoring
from seedlings_spark.choices import INT8
from seedlings_spark.cluster import session
from seedlings_spark.corpus import Corpus, look_alikes, tables
from seedlings_spark.corpus.splits import is_sampled
from seedlings_spark.errors import CorpusError, NetworkError, OptionError, SeedlingsError, StoreError
from seedlings_spark.estimator import SeedlingsModel, elephas, features
from seedlings_spark.kinds import Kind
from seedlings_spark.models import attacks, prediction, saliency, stages
from seedlings_spark.models.decisions import FLOAT32, Decisions
from seedlings_spark.models.store import INT8 as INT8_FILE
from seedlings_spark.models.store import NETWORK, ONNX, ModelStore, ModelVersion
from seedlings_spark.reports import (
    certainty,
    drift,
    evaluation,
    findings,
    gallery,
    multilabel,
    numbers,
    paired,
    promised,
    robustness,
    slices,
)
from seedlings_spark.workflow import calibration

_log = logging.getLogger(__name__)
# Training images that a split's slices are compared with: shares are then exact to less than a percent.
_TRAINING_IMAGES = 20_000


def predictions(
    spark: SparkSession,
    version: ModelVersion,
    corpus: Corpus,
    split: str,
    *,
    engine: str = "auto",
    precision: str = "auto",
    tta: int = 1,
) -> DataFrame:
    """A version's predictions for a split of a corpus as `score` would have them, beside the true species.

    Args:
        spark: The session.
        version: The version.
        corpus: The corpus.
        split: Split of the corpus.
        engine: One of `choices.ENGINES`.
        precision: One of `choices.SCORING_PRECISIONS`.
        tta: One of `choices.VIEWS`.

    Raises:
        CorpusError: The images have another size than the model takes, or there are none.
        NetworkError: int8 is asked for, and the version has no network for it.
    """
    check_fits(version, corpus, split)
    prediction.check_views(tta, (*corpus.image_size, 3))
    model = load(version)
    last = model.stages[-1]
    if isinstance(last, SeedlingsModel):
        compute_by(last, spark, version, engine=engine, precision=precision, tta=tta)
    return model.transform(corpus.images(spark, split))


def compute_by(
    model: SeedlingsModel,
    spark: SparkSession,
    version: ModelVersion,
    *,
    engine: str,
    precision: str,
    tta: int,
) -> None:
    """Let the stage of a version that has its network compute as `score` would; the arguments are `predictions`'."""
    model._set(engine=engine, tta=tta)
    if is_quantised(spark, version, engine, precision):
        model._onnx = files.read_bytes(files.join(version.path, INT8_FILE))
        model._set(precision=INT8)
    elif precision == "float32":
        model._set(precision=precision)


def is_quantised(spark: SparkSession, version: ModelVersion, engine: str, precision: str) -> bool:
    """Whether `predictions` are those of a version's quantised network, told the same."""
    chosen = prediction.engine_for(spark, engine, has_onnx=version.has_onnx)
    return scoring.takes_int8(version, chosen, precision)


def precision_of(
    spark: SparkSession, version: ModelVersion, engine: str = "auto", precision: str = "auto"
) -> str:
    """Whose thresholds are those of `predictions` that are told the same: "int8" or "float32"."""
    return INT8 if is_quantised(spark, version, engine, precision) else FLOAT32


def kept_lists(predicted: DataFrame, version: ModelVersion, path: str) -> DataFrame:
    """As `kept`, of pictures that show any number of species: a table of `schema.EVALUATED_LISTS`.

    Args:
        predicted: As `predictions` gives it.
        version: Whose predictions they are.
        path: Folder of the table, which is replaced.
    """
    values = vector_to_array(F.col(schema.PROBABILITY)).cast("array<float>")
    table = predicted.select(
        schema.PATH,
        schema.CONTENT_HASH,
        schema.species_in(F.col(schema.SPECIES)).alias(schema.SPECIES),
        schema.PREDICTED_SPECIES,
        values.alias(schema.PROBABILITIES),
    ).withColumn(schema.CONFIDENCE, scoring.confidence(version.reading.thresholds))
    return _kept(table, path, schema.EVALUATED_LISTS)


def kept_numbers(predicted: DataFrame, path: str) -> DataFrame:
    """As `kept`, of pictures that have a number each: a table of `schema.EVALUATED_NUMBERS`.

    Args:
        predicted: As `predictions` gives it.
        path: Folder of the table, which is replaced.
    """
    table = predicted.select(
        schema.PATH,
        schema.CONTENT_HASH,
        schema.number_in(F.col(schema.SPECIES)).alias(schema.VALUE),
        F.col(schema.PREDICTION).alias(schema.PREDICTED_VALUE),
    )
    return _kept(table, path, schema.EVALUATED_NUMBERS)


def _kept(table: DataFrame, path: str, layout: StructType) -> DataFrame:
    """A table on disk, from which all numbers are made: predictions are computed once."""
    typed = [F.col(field.name).cast(field.dataType).alias(field.name) for field in layout]
    options = {**session.PARQUET_CHECKSUMS, **tables.write_options(path)}
    table.select(*typed).write.mode("overwrite").options(**options).parquet(path)
    return tables.parquet(table.sparkSession, path, layout)


def evaluated_lists(
    table: DataFrame, corpus: Corpus, split: str, version: ModelVersion
) -> multilabel.MultiLabelEvaluation:
    """The numbers of a version on a split of a corpus whose pictures show any number of species.

    Args:
        table: As `kept_lists` gives it.
        corpus: That the images are of.
        split: Split of the corpus.
        version: Whose predictions they are.

    Raises:
        SeedlingsError: The model leaves out images, or gives probabilities that are not numbers.
    """
    found = multilabel.evaluate(table, version.classes, version.reading.thresholds)
    _check_number(found.num_images, corpus, split)
    return found


def evaluated_numbers(table: DataFrame, corpus: Corpus, split: str) -> numbers.NumbersEvaluation:
    """The numbers of a version on a split of a corpus whose pictures have a number each.

    Args:
        table: As `kept_numbers` gives it.
        corpus: That the images are of.
        split: Split of the corpus.

    Raises:
        SeedlingsError: The model leaves out images, or gives what is no number.
    """
    found = numbers.evaluate(table)
    _check_number(found.num_images, corpus, split)
    return found


def check_fits(version: ModelVersion, corpus: Corpus, split: str) -> None:
    """Refuse a split of a corpus that a version cannot be compared on.

    Raises:
        CorpusError: There are none, or they have another size than the model takes, or species that it does not know;
            or their labels are of another kind.
    """
    if corpus.kind != version.kind:
        raise CorpusError(
            f"{corpus.path}, whose pictures {corpus.kind.of_pictures}, for {version.name} {version.version}, which"
            f" {version.kind.of_versions}",
            "labels of the kind that the version was trained on",
            "Choose another --model-version or --corpus",
        )
    if corpus.image_size != version.image_size:
        found, expected = ("x".join(map(str, size)) for size in (corpus.image_size, version.image_size))
        raise CorpusError(
            f"{corpus.path} with images of {found} pixels for {version.name} {version.version}",
            f"images of {expected}, as that model takes",
            f"Prepare the corpus with --image-size {version.image_size[0]}, or choose another --model-version",
        )
    if corpus.manifest["aspect"] != version.aspect:
        _log.warning(
            "%s was prepared with --aspect %s, and %s %s scores with %s: of pictures that are not square score makes"
            " other ones than those that are measured here",
            *(corpus.path, corpus.manifest["aspect"], version.name, version.version, version.aspect),
        )
    if not corpus.num_images(split):
        raise CorpusError(
            f"no image in the split {split!r} of {corpus.path}", "at least one", "Choose another --split"
        )
    strange = [
        name
        for name, images_of_split in corpus.manifest["images_of_species"].items()
        if images_of_split.get(split) and name not in version.classes
    ]
    if strange:
        pair = look_alikes([*version.classes, *strange])
        alike = f" ({pair[0]} and {pair[1]} only look alike)" if pair else ""
        raise CorpusError(
            f"images of {', '.join(strange)} in the split {split!r} of {corpus.path}{alike}",
            f"species that {version.name} {version.version} knows: {', '.join(version.classes)}",
            "Choose another --model-version, or train one on this corpus",
        )


def evaluated(
    predicted: DataFrame, corpus: Corpus, split: str, classes: Sequence[str]
) -> evaluation.Evaluation:
    """The numbers of a model on a split of a corpus, of which each image counts once.

    Args:
        predicted: As `predictions` gives it.
        corpus: That the images are of.
        split: Split of the corpus.
        classes: Classes of the model.

    Raises:
        SeedlingsError: The model leaves out images, or gives probabilities that are not numbers.
    """
    names = (schema.PROBABILITY, schema.PROBABILITIES)
    probability = next((name for name in names if name in predicted.columns), "")
    matrix = evaluation.confusion_matrix(predicted, classes, probability=probability)
    _check_number(int(matrix.sum()), corpus, split)
    return evaluation.evaluate(matrix, classes)


def _check_number(found: int, corpus: Corpus, split: str) -> None:
    if found != corpus.num_images(split):
        raise SeedlingsError(
            f"predictions for {found:,} images",
            f"one for each of the {corpus.num_images(split):,} in the split {split!r} of {corpus.path}",
            "A stage of the model's pipeline leaves rows out or doubles them (see its handleInvalid): publish one that"
            " does not",
        )


def keep_species(
    spark: SparkSession, version: ModelVersion, corpus: Corpus, split: str, *, path: str, tta: int = 1
) -> str:
    """Keep a version's predicted species as a table, by the engine that it has; why it gives none, or "".

    Args:
        spark: The session.
        version: The version.
        corpus: The corpus.
        split: Split of the corpus.
        path: Folder of the table, which is replaced.
        tta: One of `choices.VIEWS`.
    """
    try:
        predicted = predictions(spark, version, corpus, split, tta=tta)
        species = predicted.select(
            schema.CONTENT_HASH, F.col(schema.PREDICTED_SPECIES).alias(schema.CURRENT_SPECIES)
        )
        # Of copies of a picture, which a corpus has, one.
        species = species.dropDuplicates([schema.CONTENT_HASH])
        species.write.mode("overwrite").options(**tables.write_options(path)).parquet(path)
    except Exception as error:  # of Spark's, where a worker raised it
        found = error if isinstance(error, SeedlingsError) else errors.from_worker(error)
        if not isinstance(found, NetworkError | StoreError):
            raise
        return f"The current version, {version.version}, cannot be compared with: {found.found}"
    return ""


def kept(predicted: DataFrame, path: str, current: str = "") -> DataFrame:
    """Keep predictions as a table on disk, from which all numbers are made: they are computed once.

    Args:
        predicted: As `predictions` gives it.
        path: Folder of the table, which is replaced.
        current: Folder of another version's species of the same images, as `keep_species` leaves it; "" for none.

    Returns:
        The table, as `schema.EVALUATED`.
    """
    spark = predicted.sparkSession
    values = F.lit(None)
    if schema.PROBABILITY in predicted.columns:
        values = vector_to_array(F.col(schema.PROBABILITY)).cast("array<float>")
    columns = {
        **{name: F.col(name) for name in (schema.PATH, schema.CONTENT_HASH, schema.SPECIES)},
        schema.PREDICTED_SPECIES: F.col(schema.PREDICTED_SPECIES),
        schema.PROBABILITIES: values,
    }
    table = predicted.select(*(column.alias(name) for name, column in columns.items()))
    table = table.withColumn(schema.CONFIDENCE, F.array_max(F.col(schema.PROBABILITIES).cast("array<float>")))
    others = F.lit(None).cast("string")
    if current:
        layout = StructType([schema.EVALUATED[schema.CONTENT_HASH], schema.EVALUATED[schema.CURRENT_SPECIES]])
        theirs = tables.parquet(spark, current, layout)
        table, others = table.join(theirs, schema.CONTENT_HASH, "left"), F.col(schema.CURRENT_SPECIES)
    return _kept(table.withColumn(schema.CURRENT_SPECIES, others), path, schema.EVALUATED)


def rival(store: ModelStore, version: ModelVersion) -> tuple[ModelVersion | None, str]:
    """The current version that a version is to be compared with, or None and why there is none."""
    if not store.current():
        return None, "There is no current version to compare with"
    try:
        current = store.verify()
    except StoreError as error:
        return None, f"The current version cannot be compared with: {error}"
    if current.version == version.version:
        return None, f"{version.version} is the current version"
    if current.kind != version.kind:
        return None, f"The current version, {current.version}, is of another kind and cannot be compared with"
    if set(current.classes) != set(version.classes):
        return None, f"The current version, {current.version}, has other species and cannot be compared with"
    if current.image_size != version.image_size:
        return None, f"The current version, {current.version}, takes images of another size"
    if current.aspect != version.aspect:
        return (
            None,
            f"The current version, {current.version}, fits pictures into their size by {current.aspect}, not"
            f" {version.aspect}, and cannot be compared with",
        )
    return current, ""


def network_of(version: ModelVersion, flag: str) -> SeedlingsModel:
    """The stage of a version that has its network.

    Args:
        version: The version.
        flag: What needs it, as a person has asked for it.

    Raises:
        NetworkError: It has none of ours.
    """
    last = load(version).stages[-1]
    if not isinstance(last, SeedlingsModel):
        raise NetworkError(
            f"{version.version}, which has no network of ours", "a version with one", f"Leave out {flag}"
        )
    return last


def saliency_task(spark: SparkSession, version: ModelVersion) -> saliency.SaliencyTask:
    """What draws maps of where a version finds what it predicts.

    Raises:
        NetworkError: Its network has no convolution.
    """
    last = network_of(version, "--saliency")
    saliency.require_convolution(last.get_model())
    content = last.network_bytes
    threads = last.getOrDefault("threads") or session.task_cpus(spark)
    return saliency.SaliencyTask(content, threads, last._objects(content))


def disturbances(
    spark: SparkSession, version: ModelVersion, asked: Sequence[str], **how: Any
) -> dict[str, robustness.Disturbance]:
    """What is to be done to a version's pictures.

    Args:
        spark: The session.
        version: The version.
        asked: Any of "robustness" and "adversarial".
        how: As `compute_by` takes it.

    Raises:
        NetworkError: It has no network of ours.
        OptionError: Attacks need a package that is not installed.
    """
    if not asked:
        return {}
    model = network_of(version, f"--{asked[0]}")
    compute_by(model, spark, version, **how)
    forward = model.forward_task(spark, are_pixels=True)
    made = {"robustness": robustness.Disturbance(forward)}
    if "adversarial" in asked:
        attacks.require()
        content = model.network_bytes
        gradients = saliency.SaliencyTask(content, forward.threads, model._objects(content))
        made["adversarial"] = robustness.Disturbance(forward, gradients)
    return {name: made[name] for name in asked}


def found(
    table: DataFrame,
    pixels: DataFrame,
    version: ModelVersion,
    rival: tuple[ModelVersion | None, str],
    task: saliency.SaliencyTask | None = None,
    precision: str = FLOAT32,
    disturbances: Mapping[str, robustness.Disturbance] | None = None,
) -> findings.Findings:
    """What there is to say of predictions beside the numbers of their confusion matrix.

    Args:
        table: As `kept` gives it, whose numbers `evaluated` has looked at.
        pixels: The images that they are of.
        version: Whose predictions they are.
        rival: The version that it is compared with, or None and why there is none.
        task: To draw maps with; None for none.
        precision: "int8" of its quantised network.
        disturbances: What is done to pictures, by the name of the field of the findings that says what comes of it.
    """
    current, why_not = rival
    classes = version.classes
    has_probabilities = table.where(F.col(schema.PROBABILITIES).isNull()).isEmpty()
    made = findings.Findings(
        certainty.certainty(table, classes) if has_probabilities else None,
        None if current is None else paired.comparison(table, current.version, classes),
        why_not,
        gallery.gallery(table, pixels, classes, task),
        promised.promised(table, Decisions.of(version.manifest, precision), classes)
        if has_probabilities
        else None,
    )
    disturbed: dict[str, Any] = {
        name: robustness.robustness(table, pixels, classes, each)
        for name, each in (disturbances or {}).items()
    }
    return dataclasses.replace(made, **disturbed)


def slice_names(corpus: Corpus, asked: Sequence[str]) -> tuple[str, ...]:
    """The columns whose values are slices: those that are asked for, or all.

    Raises:
        OptionError: The corpus does not keep one of them.
    """
    kept = corpus.kept_columns.names
    taken = {name.lower() for name in kept}  # which is what Spark goes by
    known = (*kept, *(name for name in (schema.SPECIES, *drift.STATISTICS) if name not in taken))
    if strange := [name for name in asked if name not in known]:
        raise OptionError(
            f"--slices {strange[0]} with {corpus.path}",
            f"one of {', '.join(known)}",
            "Correct it, or prepare the corpus with --keep-columns",
        )
    return tuple(dict.fromkeys(asked)) or known


def sliced(
    spark: SparkSession, table: DataFrame, corpus: Corpus, split: str, names: Sequence[str]
) -> slices.Slices:
    """Accuracy on parts of a split, and how far they are from those of the training split.

    Args:
        spark: The session.
        table: As `kept` gives it.
        corpus: That the images are of.
        split: Split of the corpus.
        names: As `slice_names` gives them.
    """
    is_right = F.coalesce(F.col(schema.SPECIES) == F.col(schema.PREDICTED_SPECIES), F.lit(False))
    key = [schema.PATH, schema.CONTENT_HASH]
    rows = slices.described(corpus.described_images(spark, split), names)
    rows = rows.join(table.select(*key, is_right.alias(slices.IS_RIGHT)), key)
    rows = rows.withColumn(slices.IS_LOOKED_AT, F.lit(True))
    if split != schema.TRAIN and (num := corpus.num_images(schema.TRAIN)):
        train = corpus.described_images(spark, schema.TRAIN).where(is_sampled(_TRAINING_IMAGES / num))
        nothing = {slices.IS_RIGHT: F.lit(None).cast("boolean"), slices.IS_LOOKED_AT: F.lit(False)}
        rows = rows.unionByName(slices.described(train, names).withColumns(nothing))
    height, width = corpus.image_size
    with session.arrow_batches(spark, height * width * 3):
        found = slices.slices(rows, names)
    for one in found.worst[:1]:
        low, high = one.interval
        _log.info(
            "the worst slice is %s: %d of %d right, 95 %%: %.3f to %.3f",
            one.name,
            one.right,
            one.num_images,
            low,
            high,
        )
    return found


def load(version: ModelVersion) -> PipelineModel:
    """The fitted pipeline of a version.

    What Spark would make of a version from elsewhere is looked at first: see `stages`.

    Raises:
        StoreError: A file of it is not as it was published, or holds a stage that we do not know to be harmless.
    """
    version.check_files()
    check_stages(version.pipeline_path)
    return PipelineModel.load(version.pipeline_path)


def check_stages(folder: str) -> None:
    """Refuse a saved pipeline with other stages than those that are published here."""
    own = (
        SeedlingsModel,
        elephas.ElephasTransformer,
        features.ImageStandardizerModel,
        features.MultiLabelBinarizerModel,
    )
    names = {f"{each.__module__}.{each.__name__}": each for each in own}
    networks_of = [name for name, each in names.items() if issubclass(each, SeedlingsModel)]
    stages.check(folder, names, dict.fromkeys(networks_of, (NETWORK, ONNX)))


def record(
    store: ModelStore,
    version: ModelVersion,
    corpus: Corpus,
    numbers: evaluation.Evaluation,
    found: findings.Findings,
) -> None:
    """Write into the store what was found of a version on a test split, for those who look at the version later."""
    left_out = ("classes", "confusion_matrix")
    known = {name: value for name, value in numbers.to_dict().items() if name not in left_out}
    more = {
        name: value
        for name, value in found.to_dict().items()
        if name not in ("comparison", "reliability", "slices")
    }
    about = {
        "corpus": corpus.path,
        "corpus_fingerprint": corpus.fingerprint,
        "evaluated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    try:
        store.record_evaluation(version.version, {**about, **known, **more})
    except OSError as error:
        _log.warning("the numbers are not written into the store, which models list would show (%s)", error)


def about_evaluation(
    version: ModelVersion, corpus: Corpus, split: str, tta: int = 1, precision: str = FLOAT32
) -> dict[str, object]:
    """What a report says of where its numbers come from."""
    told = precision if precision == INT8 else "float32; score takes int8, unless told otherwise"
    manifest = version.manifest
    options = manifest.get("options") or {}
    calibrated = calibration.words(manifest.get("calibration") or {})
    known = {
        "published": manifest.get("created"),
        "network": options.get("network") or manifest.get("imported_from"),
        "published_epoch": (manifest.get("kept") or {}).get("epoch"),
        "training_seconds": manifest.get("training_seconds"),
        "trained_on": (manifest.get("corpus") or {}).get("path"),
        "training_images": ((manifest.get("corpus") or {}).get("images_of_split") or {}).get(schema.TRAIN),
        "run": manifest.get("run_path"),
        "tta": tta if tta > 1 else None,
        "calibration": calibrated if version.kind == Kind.CLASSIFICATION else None,
        "precision": told if version.has_int8 else None,
    }
    return {
        "model": version.name,
        "model_version": version.version,
        "split": split,
        "corpus": corpus.path,
        "corpus_fingerprint": corpus.fingerprint,
        "trained_on_this_corpus": manifest.get("corpus", {}).get("fingerprint") in corpus.lineage,
        **{name: value for name, value in known.items() if value is not None},
    }
