"""What each job does, as one call: options in, a result out, nothing printed.

What needs TensorFlow is imported by the calls that need it: neither `prepare` nor `score` does here.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession

from seedlings_spark import choices, config, corpus, files, schema, scoring
from seedlings_spark.cluster import session
from seedlings_spark.config import (
    EvaluateOptions,
    ModelsOptions,
    PrepareOptions,
    ScoreOptions,
    TrainOptions,
)
from seedlings_spark.corpus import Corpus, decoding
from seedlings_spark.errors import CorpusError, OptionError
from seedlings_spark.kinds import Kind
from seedlings_spark.lock import Lock
from seedlings_spark.models import decisions
from seedlings_spark.models.store import CURRENT, ModelStore, ModelVersion, table
from seedlings_spark.reports.evaluation import Evaluation
from seedlings_spark.reports.multilabel import MultiLabelEvaluation
from seedlings_spark.reports.numbers import NumbersEvaluation
from seedlings_spark.scoring import ScoreRun
from seedlings_spark.training.messages import Exchanged
from seedlings_spark.workflow import runs

if TYPE_CHECKING:
    from pyspark.ml import PipelineModel

    from seedlings_spark.estimator import SeedlingsEstimator
    from seedlings_spark.workflow import transfer
    from seedlings_spark.workflow.publication import Promotion

_log = logging.getLogger(__name__)
# Of one species a picture, any number of them, a number.
Evaluated = Evaluation | MultiLabelEvaluation | NumbersEvaluation
# What options and what is called have by the same names.
_ESTIMATOR: tuple[str, ...] = (
    "mode",
    "rule",
    "frequency",
    "num_workers",
    "min_workers",
    "shards",
    "threads",
    "epochs",
    "batch_size",
)
_ESTIMATOR += ("precision", "memory_budget_mb", "server_port", "exchange", "worker_port", "encrypt", "seed")
_ESTIMATOR += ("mixup", "cutmix", "curriculum_epochs", "drop_slow")


def prepare(spark: SparkSession, options: PrepareOptions) -> Corpus:
    """Read image files into a corpus: pixels, splits, rejects and a manifest that adds up.

    Args:
        spark: The session.
        options: Those of the job `prepare`.

    Returns:
        The corpus; its `manifest` has the numbers.

    Raises:
        CorpusError: There is nothing to read, species look alike, or the corpus is already there.
        OptionError: An option that cannot be.
    """
    options = config.qualified(options)
    task = decoding.DecodeTask(
        size=(options.image_size, options.image_size),
        **config.chosen(options, "aspect", "formats", "max_pixels", "max_bytes"),
    )
    near_duplicates = "" if options.near_duplicates == "auto" else options.near_duplicates
    split = corpus.SplitRule(
        dict(zip(schema.SPLITS, options.split_shares, strict=True)),
        options.split_policy,
        time_column=options.split_time,
        **config.chosen(options, "leaks", "group_column", "group_from_path"),
        near_duplicates=near_duplicates or "ignore",
    )
    parent = corpus.load(options.parent).require_one_species("--parent") if options.parent else None
    if parent is not None:
        _refuse_other_choices(options, parent)
        task = decoding.DecodeTask.of_corpus(parent.manifest)
        split = corpus.SplitRule.of_parent(parent.manifest, options.leaks, near_duplicates)
    selection = corpus.Selection(options.conflicts, options.sample, parent, options.fixes)
    table = corpus.TableFormat(
        **config.chosen(options, "content_column", "label_separator", "number_column", "keep_columns"),
        format=options.table_format,
    )
    return corpus.prepare(
        spark,
        options.images,
        options.corpus,
        task,
        split,
        selection,
        table=table,
        overwrite=options.overwrite,
    )


def _refuse_other_choices(options: PrepareOptions, parent: Corpus) -> None:
    """Refuse options that a parent has settled otherwise; those that were left alone are the parent's."""
    manifest = parent.manifest
    settled = {
        "image_size": parent.image_size[0],
        "split_shares": tuple(manifest["split_shares"].values()),
        "formats": tuple(manifest["formats"]),
        **{name: manifest[name] for name in ("aspect", "max_pixels", "max_bytes", "split_policy")},
        **{name: manifest.get("groups", {}).get(name, "") for name in ("group_column", "group_from_path")},
        "split_time": "",
        "keep_columns": tuple(parent.kept_columns.names),
    }
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in settled and value not in (field.default, settled[field.name]):
            given, its = (
                (" ".join(map(str, each)) or "none") if isinstance(each, tuple) else each
                for each in (value, settled[field.name])
            )
            raise OptionError(
                f"{config.flag_of(field.name)} {given} with --parent {options.parent}",
                f"{its}, as in the parent",
                f"Leave out {config.flag_of(field.name)}, or prepare all images anew",
            )


@dataclass(frozen=True)
class Trained:
    """What `train` has made.

    Args:
        run: Folder of the run.
        name: Name of the model.
        version: That the run has published, such as v0001.
        published: The version itself; None where the run had published it before, and did nothing now.
        promotion: Whether it became the current version, and why; None likewise.
    """

    run: str
    name: str
    version: str
    published: ModelVersion | None = None
    promotion: "Promotion | None" = None

    def summary(self) -> list[tuple[str, object]]:
        """Rows of a table for a person to read."""
        from seedlings_spark.workflow import folds, publication

        if self.published is None or self.promotion is None:
            return [("run", f"{self.run} has already published {self.name} {self.version}")]
        rows = publication.summary(self.published, self.run, self.promotion)
        found = self.published.manifest.get("folds")
        return [*rows, ("cross-validated", folds.in_words(found))] if found else rows


def train(spark: SparkSession, options: TrainOptions) -> Trained:
    """Train a network on a corpus and publish it to the model store as a new version.

    Called again with the folder of a run that was cut short, it goes on; of one that has ended, it does nothing.

    Args:
        spark: The session; each worker needs one of its slots.
        options: Those of the job `train`.

    Raises:
        ClusterError: Too few slots.
        CorpusError: The corpus is damaged, or lacks images of a species.
        OptionError: An option that cannot be, or other ones than those of the run that is to go on.
        OutputInUseError: Another process is at work on the same run.
        TrainingError: Workers have failed too often.
    """
    from seedlings_spark.workflow import curriculum, folds, pipeline, publication, tracking

    options = config.qualified(options)
    client = tracking.connect(options.mlflow)
    # At once: the estimator asks only when it is its turn.
    session.require_slots(spark, options.num_workers, options.wait_executors, options.min_workers)
    prepared, store = corpus.load(options.corpus), ModelStore(options.store, options.name)
    pipeline.check_network(options.network, prepared)
    pipeline.loss(options.loss, options.label_smoothing, prepared)  # which refuses one that does not fit
    _check_promises(options, prepared)
    application = str(spark.sparkContext.applicationId)
    run = options.run or files.join(options.store, options.name, "runs", application)
    about = pipeline.about(prepared, config.plain(options), run)
    with Lock(run, application) as lock:
        if published := runs.begin(run, about, application):
            return Trained(run, options.name, published)
        with runs.recorded(run), tracking.tracked(client, run, options.name, about) as tracked:
            about |= tracked.about
            images = pipeline.training_images(spark, prepared)
            if options.show_augmentation:
                mixed = (options.mixup, options.cutmix)
                pipeline.show_augmentation(spark, prepared, run, options.augment, mixed)

            def fit(place: str, images: DataFrame, callbacks: Sequence[Any] = ()) -> "PipelineModel":
                """Train in a folder of the run's, by default to the last epoch."""
                return _trained(spark, options, prepared, (place, lock.check), images, callbacks)

            if options.curriculum != "none":
                paced = options.curriculum_epochs or max(1, options.epochs // 2)
                about["curriculum"] = {"by": options.curriculum, "quarters_from": curriculum.pacing(paced)}
            if options.folds:
                about["folds"] = folds.cross_validate(spark, images, prepared, run, options.folds, fit)
            kept = config.chosen(options, "keep", "patience", "epochs", "schedule")
            recording = pipeline.records(spark, prepared, run, lock.check, tracked.report)
            model = fit(run, images, [*recording, *pipeline.callbacks(prepared, **kept)])
            version, promotion = publication.publish_trained(
                spark, store, model, prepared, about=about, check=lock.check
            )
            runs.end(run, version.version)
            tracked.publish(version)
    return Trained(run, options.name, version.version, version, promotion)


def _trained(
    spark: SparkSession,
    options: TrainOptions,
    prepared: Corpus,
    place: tuple[str, Callable[[], None]],
    images: DataFrame,
    callbacks: Sequence[Any] = (),
) -> "PipelineModel":
    """The pipeline, trained in a folder that is still this run's while what comes with it does not raise."""
    from seedlings_spark.workflow import curriculum, pipeline

    run, check = place
    if options.curriculum == choices.BY_LOSS:
        epochs = curriculum.epochs_of(options.epochs)
        first = dataclasses.replace(options, curriculum="none", curriculum_epochs=0, epochs=epochs)
        images = curriculum.with_loss(
            images, run, lambda folder, images: _trained(spark, first, prepared, (folder, check), images)
        )
    made = estimator(spark, options, prepared, run, images)
    if options.fine_tune == choices.STAGED:
        made.set_network(_with_head(spark, options, prepared, run, images))
    made.set_callbacks(callbacks or [pipeline.RunRecord(files.join(run, runs.METRICS), check)])
    return _fitted(spark, options, prepared, made, images)


def _check_promises(options: TrainOptions, prepared: Corpus) -> None:
    """Refuse at once what a whole training would end with: nothing to fit on, or folds that there cannot be."""
    from seedlings_spark.workflow import folds

    _check_kind(options, prepared)
    images, shards = prepared.num_images(schema.TRAIN), options.shards or options.num_workers
    if images < shards:
        raise CorpusError(
            f"{images} images to train on in {prepared.path} for {shards} shards",
            "at least one image for each shard; without --shards there are as many as workers",
            "Prepare a corpus of more images, or give fewer --shards or --num-workers",
        )
    if options.folds:
        folds.check(prepared, options.folds)
    num = prepared.num_images(schema.VALIDATION)
    if (options.calibrate or options.schedule == "plateau") and not num:
        flag = "--calibrate" if options.calibrate else "--schedule plateau"
        raise OptionError(
            f"{flag} with {options.corpus}, which has no validation images",
            "some, whose loss it goes by",
            f"Leave out {flag}, or prepare the corpus with a share for validation (--split-shares)",
        )
    nothing = np.zeros(num)
    decisions.fit(nothing, nothing, **config.chosen(options, "coverage", "max_unknown"))


def _check_kind(options: TrainOptions, prepared: Corpus) -> None:
    """Refuse what is for pictures of one species each, of others."""
    if prepared.kind == Kind.CLASSIFICATION:
        return
    asked = {
        "--folds": options.folds,
        "--curriculum": options.curriculum != "none",
        "--class-weight": options.class_weight != "none",
        "--calibrate": options.calibrate,
        "--coverage": options.coverage,
        "--max-unknown": options.max_unknown,
        "--quantize": options.quantize,
        "--promote better": options.promote == "better",
    }
    if prepared.kind == Kind.REGRESSION:
        of_species = ("label_smoothing", "mixup", "cutmix")
        asked |= {config.flag_of(name): getattr(options, name) for name in of_species}
    _refuse_for_others(asked, prepared)


def _refuse_for_others(asked: Mapping[str, object], prepared: Corpus) -> None:
    """Refuse options that are for species, or for one species a picture, of a corpus with other labels.

    Args:
        asked: Flag -> what was given; what is empty was not.
        prepared: The corpus.

    Raises:
        OptionError: One was given.
    """
    if refused := [flag for flag, value in asked.items() if value]:
        raise OptionError(
            f"{refused[0]} with {prepared.path}, whose pictures {prepared.kind.of_pictures}",
            "pictures of species" if prepared.kind == Kind.REGRESSION else "pictures of one species each",
            f"Leave out {refused[0]}",
        )


def estimator(
    spark: SparkSession, options: TrainOptions, prepared: Corpus, run: str, images: DataFrame
) -> "SeedlingsEstimator":
    """The estimator of a run, with its network and optimizer.

    Args:
        spark: The session.
        options: Those of the job `train`.
        prepared: The corpus.
        run: Folder of the run, for its checkpoints.
        images: As `pipeline.training_images` gives them, or a part of them.
    """
    from seedlings_spark.estimator import SeedlingsEstimator
    from seedlings_spark.models import networks
    from seedlings_spark.workflow import curriculum, pipeline, transfer

    # The master's optimizer then takes the steps of all workers, otherwise each worker's own takes its steps.
    exchanged = Exchanged.of(options.mode, options.frequency, options.rule)
    is_shared = options.mode != choices.SYNCHRONOUS and not exchanged.is_local
    sizes = (options.shards or options.num_workers, options.batch_size, options.epochs)
    changes = options.augment
    if transfer.is_for(options.network, options.fine_tune, changes):
        # Each view of an image is a row of features, which nothing changes.
        images = transfer.in_views(images, transfer.num_views(changes, prepared.image_size))
        changes = ("none",)
    steps = pipeline.num_steps(images, *sizes, is_shared=is_shared)
    made = SeedlingsEstimator(
        **config.chosen(options, *_ESTIMATOR),
        optimizer_config=pipeline.optimizer(
            options.optimizer,
            pipeline.learning_rate(options.learning_rate, options.schedule, steps, options.warm_up),
            **config.chosen(options, "momentum", "weight_decay", "ema", "clip_norm"),
        ),
        loss=pipeline.loss(options.loss, options.label_smoothing, prepared),
        metrics=pipeline.metrics(prepared),
        class_weight="" if options.class_weight == "none" else options.class_weight,
        augmentation=networks.augmentation(changes, prepared.image_size),
        layer_decay=options.decay_of_layers,
        curriculum=curriculum.column_of(options.curriculum),
        checkpoint_path=files.join(run, runs.CHECKPOINTS),
        verbose=1,
    )
    given = (options.weights, options.fine_tune, options.dropout)
    pipeline.set_network(made, options.network, prepared, *given)
    return made


def _with_head(
    spark: SparkSession, options: TrainOptions, prepared: Corpus, run: str, images: DataFrame
) -> Any:
    """The network of a run with its head trained, on features that are computed once, and ready to train the rest."""
    from seedlings_spark.estimator import SeedlingsEstimator
    from seedlings_spark.models import networks
    from seedlings_spark.workflow import pipeline, transfer

    shards, epochs = options.shards or options.num_workers, transfer.HEAD_EPOCHS
    steps = pipeline.num_steps(images, shards, options.batch_size, epochs)
    rate = pipeline.learning_rate(transfer.HEAD_RATE, "cosine", steps)
    others = ("mode", "rule", "frequency", "epochs", "mixup", "cutmix", "curriculum_epochs", "drop_slow")
    same = [name for name in _ESTIMATOR if name not in others]
    head = SeedlingsEstimator(
        **config.chosen(options, *same),
        epochs=epochs,
        optimizer_config=pipeline.optimizer("adam", rate),
        loss=pipeline.loss(options.loss, options.label_smoothing, prepared),
        metrics=pipeline.metrics(prepared),
        class_weight="" if options.class_weight == "none" else options.class_weight,
        checkpoint_path=files.join(run, runs.CHECKPOINTS, "head"),
        verbose=1,
    )
    named = (options.network, prepared, options.weights, options.seed)
    network = pipeline.named_network(*named, dropout=options.dropout)
    kept = transfer.Kept(network, files.join(options.store, options.name, transfer.FEATURES))
    transfer.fit(spark, head, prepared, kept, images if options.folds else None)
    networks.freeze(network, options.fine_tune)
    return network


def kept_features(options: TrainOptions, prepared: Corpus) -> "transfer.Kept":
    """The features that a head is trained on, where it alone is (`transfer.is_for`)."""
    from seedlings_spark.workflow import pipeline, transfer

    named = (options.network, prepared, options.weights, options.seed)
    return transfer.Kept(
        pipeline.named_network(*named, **config.chosen(options, "head_on", "dropout")),
        files.join(options.store, options.name, transfer.FEATURES),
        transfer.num_views(options.augment, prepared.image_size),
    )


def _fitted(
    spark: SparkSession,
    options: TrainOptions,
    prepared: Corpus,
    estimator: "SeedlingsEstimator",
    images: DataFrame,
) -> "PipelineModel":
    """The pipeline, trained: on the images, or where the head alone is trained on their features."""
    from seedlings_spark.workflow import pipeline, transfer

    if transfer.is_for(options.network, options.fine_tune, options.augment):
        kept = kept_features(options, prepared)
        return transfer.fit(spark, estimator, prepared, kept, images if options.folds else None)
    scaler = pipeline.scaler(options.scaler, options.network)
    stages = pipeline.pipeline(prepared, estimator, scaler=scaler, scaler_images=options.scaler_images)
    return stages.fit(images)


def evaluate(spark: SparkSession, options: EvaluateOptions) -> Evaluated:
    """Evaluate a model version on a split of a corpus, and write numbers, plots and a page that shows them.

    Args:
        spark: The session.
        options: Those of the job `evaluate`.

    Raises:
        CorpusError: The corpus is damaged, has images of another size, or species that the version does not know.
        StoreError: There is no such version, or it is not as it was published.
    """
    from seedlings_spark.workflow import tracking

    options = config.qualified(options)
    client = tracking.connect(options.mlflow)
    prepared = corpus.load(options.corpus)
    store = ModelStore(options.store, options.name, options.require_signature)
    version = store.verify(options.model_version)
    numbers: Evaluated
    if {prepared.kind, version.kind} != {Kind.CLASSIFICATION}:
        numbers = _evaluated_others(spark, options, prepared, version)
    else:
        numbers = _evaluated(spark, options, prepared, store, version)
    tracking.evaluated(client, version, options.split, numbers.to_dict(), options.report)
    return numbers


def _evaluated(
    spark: SparkSession, options: EvaluateOptions, prepared: Corpus, store: ModelStore, version: ModelVersion
) -> Evaluation:
    """As `evaluate`, of pictures that show one species each."""
    from seedlings_spark.reports import page as report
    from seedlings_spark.workflow import predicting, projecting

    of = (prepared, options.split)
    slice_names = predicting.slice_names(prepared, options.slices)
    how = config.chosen(options, "engine", "precision")
    predictions = predicting.predictions(spark, version, *of, **how, tta=options.tta)
    precision = predicting.precision_of(spark, version, **how)
    if doubt := decisions.Decisions.of(version.manifest, precision).doubt(options.tta):
        _log.warning("%s", doubt)
    task = predicting.saliency_task(spark, version) if options.saliency else None
    featurizer = projecting.featurizer(version, options.engine) if options.projector else None
    asked = [name for name in ("robustness", "adversarial") if getattr(options, name)]
    disturbances = predicting.disturbances(spark, version, asked, **how, tta=options.tta)
    current, why_not = predicting.rival(store, version)
    report.clear(options.report)
    theirs = files.join(options.report, "predictions-of-current")
    if current is not None and (
        why_not := predicting.keep_species(spark, current, *of, path=theirs, tta=options.tta)
    ):
        current = None
    table = predicting.kept(
        predictions, files.join(options.report, report.PREDICTIONS), "" if current is None else theirs
    )
    files.delete(theirs)
    numbers = predicting.evaluated(table, prepared, options.split, version.classes)
    pixels = prepared.images(spark, options.split)
    findings = predicting.found(table, pixels, version, (current, why_not), task, precision, disturbances)
    sliced = predicting.sliced(spark, table, *of, slice_names)
    findings = dataclasses.replace(findings, slices=sliced)
    if featurizer is not None:
        projection = projecting.projected(featurizer, table, pixels)
        findings = dataclasses.replace(findings, projection=projection)
    kept: Mapping[str, Any] = version.manifest.get("kept") or {}
    report.write(
        options.report,
        numbers,
        history=version.manifest.get("history"),
        kept_epoch=kept.get("epoch"),
        rows_of_quarter=(version.manifest.get("training") or {}).get("rows_of_quarter", ()),
        about=predicting.about_evaluation(version, prepared, options.split, options.tta, precision),
        findings=findings,
    )
    if findings.comparison is not None:
        _log.info("%s is %s", version.version, findings.comparison.words)
    # What the store says of a version is what `score` has of it, unless told otherwise.
    if options.split == schema.TEST and options.tta == 1 and (precision == choices.INT8) == version.has_int8:
        predicting.record(store, version, prepared, numbers, findings)
    return numbers


def _evaluated_others(
    spark: SparkSession, options: EvaluateOptions, prepared: Corpus, version: ModelVersion
) -> MultiLabelEvaluation | NumbersEvaluation:
    """As `evaluate`, of pictures that show any number of species, or have a number each."""
    from seedlings_spark.reports import gallery
    from seedlings_spark.reports import page as report
    from seedlings_spark.reports.numbers import points as scattered
    from seedlings_spark.workflow import predicting

    predicting.check_fits(version, prepared, options.split)
    asked = ("saliency", "robustness", "adversarial", "projector", "slices")
    _refuse_for_others({config.flag_of(name): getattr(options, name) for name in asked}, prepared)
    how = config.chosen(options, "engine", "precision")
    predicted = predicting.predictions(spark, version, prepared, options.split, **how, tta=options.tta)
    report.clear(options.report)
    path, pixels = files.join(options.report, report.PREDICTIONS), prepared.images(spark, options.split)
    kept: Mapping[str, Any] = version.manifest.get("kept") or {}
    known: dict[str, Any] = {
        "history": version.manifest.get("history"),
        "kept_epoch": kept.get("epoch"),
        "about": predicting.about_evaluation(version, prepared, options.split, options.tta),
    }
    if version.kind == Kind.MULTILABEL:
        table = predicting.kept_lists(predicted, version, path)
        of_lists = predicting.evaluated_lists(table, prepared, options.split, version)
        report.write_multilabel(options.report, of_lists, **known, wrong=gallery.wrong_lists(table, pixels))
        return of_lists
    table = predicting.kept_numbers(predicted, path)
    of_numbers = predicting.evaluated_numbers(table, prepared, options.split)
    known["about"] = {"number": prepared.manifest["number_column"], **known["about"]}
    points, furthest = scattered(table, of_numbers.num_images), gallery.furthest(table, pixels)
    report.write_numbers(options.report, of_numbers, **known, points=points, furthest=furthest)
    return of_numbers


def score(spark: SparkSession, options: ScoreOptions) -> ScoreRun:
    """Score images with a model version: a prediction or a rejection for every file.

    Args:
        spark: The session.
        options: Those of the job `score`.

    Returns:
        The run: its folder, its numbers, how its images differ from the training corpus.

    Raises:
        InputError: There is nothing to score, or the runs would lie among the images.
        OptionError: The version in the shadow is the same one, or takes other pixels.
        OutputInUseError: Another run is writing to this output.
        StoreError: There is no such version, it is not as it was published, or it has no profile of its training
            corpus though `max_drift` asks for one.
    """
    options = config.qualified(options)
    store = ModelStore(options.store, options.name, options.require_signature)
    version = store.verify(options.model_version, scoring.CONTENTS)
    if options.max_drift:
        scoring.require_profile(version)
    shadow = store.verify(options.shadow, scoring.CONTENTS) if options.shadow else None
    return scoring.score(spark, version, options, shadow)


def models(options: ModelsOptions) -> str:
    """List, promote, roll back, sign, import, export, upgrade, quantise, delete or describe versions of a model.

    Args:
        options: Those of the job `models`.

    Returns:
        What was done, and the table of versions, for a person to read; of `card` the model card, as Markdown.

    Raises:
        NetworkError: The file to import is no image classifier of so many classes; a network has no ONNX form, or
            differs from Keras in the form to export.
        StoreError: There is no such version, or what is asked for cannot be done with it.
        WorseError: A version that was to be promoted only if it is better is worse.
    """
    options = config.qualified(options)
    store = ModelStore(options.store, options.name, options.require_signature)
    done = ""
    if options.action == "card":
        from seedlings_spark.exports import card

        version = store.resolve(options.model_version or CURRENT).require_one_species("models card")
        return card.of_version(version, store.evaluation(version.version))
    if options.action == "promote" and options.if_better:
        from seedlings_spark.workflow import promoting

        spark = SparkSession.builder.getOrCreate()
        done = promoting.promote_if_better(spark, store, options) + "\n\n"
    elif options.action == "promote":
        store.promote(options.model_version)
    elif options.action == "rollback":
        store.rollback()
    elif options.action == "sign":
        store.sign(options.model_version, options.key)
    elif options.action == "delete":
        freed = store.delete(options.model_version)
        done = f"{store.name} {options.model_version} is deleted: {freed / 1e6:,.1f} MB are freed\n\n"
    elif options.action == "import":
        from seedlings_spark.workflow import publication

        about = config.chosen(options, "aspect", "promote", "outputs")
        publication.import_network(store, options.network, options.classes, **about)
    elif options.action == "upgrade":
        from seedlings_spark.workflow import publication

        made = publication.upgrade(store, options.model_version, promote=options.promote)
        done = f"{store.name} {made.version} is {options.model_version} with network.onnx\n\n"
    elif options.action == "export":
        from seedlings_spark.workflow import exporting

        done = exporting.export(store, options) + "\n\n"
    elif options.action == "quantize":
        from seedlings_spark.workflow import publication

        prepared = corpus.load(options.corpus).require_one_species("models quantize")
        made = publication.quantize(store, options.model_version, prepared, promote=options.promote)
        done = f"{store.name} {made.version} is {options.model_version} in int8, too\n\n"
    return done + table(store)
