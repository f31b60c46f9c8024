"""Images, or a corpus, as vectors: what a layer of a network gives for each, computed by the scoring engine."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import choices, config, corpus, display, files, fingerprint, schema
from seedlings_spark.cluster import runtime, session
from seedlings_spark.config import FeaturizeOptions
from seedlings_spark.corpus import Corpus, decoding, tables
from seedlings_spark.errors import CorpusError, InputError, NetworkError
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.models import networks
from seedlings_spark.models.store import ModelStore
from seedlings_spark.scoring import progress, sources, tasks
from seedlings_spark.workflow import pipeline, predicting

_log = logging.getLogger(__name__)
FORMAT = 1
# In the folder that is made; the manifest comes last, and says that the others are whole.
FEATURES, REJECTS, MANIFEST = "features", "rejects", "manifest.json"
_ALL = "_all"  # what the tasks leave, before features and rejects part


@dataclass(frozen=True)
class Featurized:
    """What `featurize` has made.

    Args:
        path: The folder.
        manifest: Its numbers.
    """

    path: str
    manifest: Mapping[str, Any]

    def features(self, spark: SparkSession) -> DataFrame:
        """The vectors, as `schema.FEATURIZED`."""
        return tables.parquet(spark, files.join(self.path, FEATURES), schema.FEATURIZED)

    def summary(self) -> list[tuple[str, object]]:
        """Rows of a table for a person to read."""
        shown = [
            (name, self.manifest[name]) for name in ("network", "layer", "engine") if self.manifest[name]
        ]
        numbers = [
            (name, f"{self.manifest[name]:,}") for name in ("listed", "featurized", "rejected", "length")
        ]
        return [*shown, *numbers, ("features", display.Whole(files.join(self.path, FEATURES)))]


def featurize(spark: SparkSession, options: FeaturizeOptions) -> Featurized:
    """Compute the vector of a layer for every image of a corpus, or every file of a folder, list or table.

    Args:
        spark: The session.
        options: Those of the job `featurize`.

    Raises:
        CorpusError: The output is there already, or the corpus has images of another size than the network takes.
        InputError: There is nothing to read.
        NetworkError: Weights that cannot be had.
        OptionError: The network has no such layer, or one that does not give one vector a row.
        StoreError: There is no such version, or it is damaged.
    """
    options = config.qualified(options)
    if files.exists(files.join(options.output, MANIFEST)):
        raise CorpusError(
            f"{options.output}, which has features already",
            "a new folder",
            "Give another --output, or delete it",
        )
    prepared = corpus.load(options.corpus).require_one_species("featurize") if options.corpus else None
    network, about = _network(options, prepared)
    about["network_sha256"] = digest(networks.features_of(network, options.layer))
    model = SeedlingsModel.featurizer(network, options.layer, output_col=FEATURES)
    if options.engine != choices.TENSORFLOW:
        try:
            model.use_onnx()
        except NetworkError as error:
            _log.warning("computed by TensorFlow: %s", error.found)
    model._set(engine=options.engine)
    about["layer"] = options.layer
    if prepared is not None:
        about |= {"corpus": prepared.path, "corpus_fingerprint": prepared.fingerprint}
        return _of_corpus(spark, model, prepared, options.output, about)
    return _of_files(spark, model, options, about)


def _network(options: FeaturizeOptions, prepared: Corpus | None) -> tuple[Any, dict[str, Any]]:
    """The network, and what the manifest says of it."""
    if options.store:
        version = ModelStore(options.store, options.name, options.require_signature).verify(
            options.model_version
        )
        last = predicting.load(version).stages[-1]
        if not isinstance(last, SeedlingsModel):
            raise NetworkError(
                f"{version.version}, which has no network of ours",
                "a version with one",
                "Choose another version",
            )
        network, size = last.get_model(), version.image_size
        about = {
            "network": f"{version.name} {version.version}",
            "version": {
                "store": options.store,
                "name": version.name,
                "model_version": version.version,
            },
            "aspect": str(version.manifest.get("aspect", "crop")),
        }
    else:
        size = prepared.image_size if prepared is not None else (options.image_size, options.image_size)
        with pipeline.local_file(options.weights) as weights:
            network = networks.build(options.network, size, 2, weights)
        aspect = options.aspect if prepared is None else str(prepared.manifest["aspect"])
        about = {"network": options.network, "weights": options.weights, "aspect": aspect}
    if prepared is not None and prepared.image_size != size:
        found, expected = ("x".join(map(str, each)) for each in (prepared.image_size, size))
        raise CorpusError(
            f"{prepared.path} with images of {found} pixels for {about['network']}",
            f"images of {expected}, as that network takes",
            "Prepare the corpus with another --image-size, or choose another version or network",
        )
    return network, {**about, "image_size": list(size)}


def network_of(manifest: Mapping[str, Any], require_signature: str = "") -> Any:
    """The network that a folder's features are of, up to their layer.

    Args:
        manifest: Of the folder.
        require_signature: As for `ModelStore`.

    Raises:
        NetworkError: Weights that cannot be had.
        StoreError: Its version is gone, or not as it was published.
    """
    of = manifest.get("version") or {
        **{name: manifest[name] for name in ("network", "weights")},
        "image_size": int(manifest["image_size"][0]),
    }
    options = FeaturizeOptions(images="-", output="-", require_signature=require_signature, **of)
    network, _ = _network(options, None)
    return networks.features_of(network, str(manifest["layer"]))


def digest(network: Any) -> str:
    """The SHA-256 of a network's weights."""
    return fingerprint.content_hash(b"".join(weight.tobytes() for weight in network.get_weights()))


def _of_corpus(
    spark: SparkSession, model: SeedlingsModel, prepared: Corpus, output: str, about: Mapping[str, Any]
) -> Featurized:
    made = model.transform(prepared.images(spark))
    _written(made.select(*_columns(F.col(schema.SPECIES), F.col(schema.SPLIT), F.col(FEATURES))), output)
    engine = model.forward_task(spark, are_pixels=True).engine
    return _ended(spark, output, prepared.manifest["accepted"], {}, {**about, "engine": engine})


def _of_files(
    spark: SparkSession, model: SeedlingsModel, options: FeaturizeOptions, about: Mapping[str, Any]
) -> Featurized:
    sources.check_output(options.images, options.output)
    source = sources.find(spark, options.images, max_bytes=options.max_bytes)
    total = source.listing.agg(F.count("*"), F.sum(decoding.cost())).first()
    listed, cost = (int(total[0]), int(total[1] or 0)) if total is not None else (0, 0)
    if not listed:
        raise InputError(f"{options.images} is empty", "at least one file", "Check --images")
    decode = decoding.DecodeTask(
        size=(about["image_size"][0], about["image_size"][1]),
        aspect=about["aspect"],
        **config.chosen(options, "formats", "max_pixels", "max_bytes"),
    )
    task = tasks.ScoreTask(decode, model.forward_task(spark, are_pixels=True))
    environment = runtime.worker_environment(task.forward.threads)
    everything = files.join(options.output, _ALL)
    with decoding.batches(spark), progress.Watch(spark, listed) as watch:
        with session.python_environment(spark, environment):
            work = decoding.Work(cost, listed)
            made = tasks.score_files(
                spark, source.listing, source, task, watch.tally, work=work, is_whole=True
            )
        made.write.mode("overwrite").options(**tables.write_options(options.output)).parquet(everything)
    rows = spark.read.schema(tasks.SCORED).parquet(tables.literal(everything))
    nothing = F.lit(None).cast("string")
    is_image = F.col(schema.REASON).isNull()
    _written(
        rows.where(is_image).select(*_columns(nothing, nothing, F.col(schema.PROBABILITIES))), options.output
    )
    rejects = rows.where(~is_image).select(*schema.REJECTS.names)
    rejects.coalesce(1).write.mode("overwrite").parquet(files.join(options.output, REJECTS))
    reasons = {str(row[0]): int(row[1]) for row in rejects.groupBy(schema.REASON).count().collect()}
    files.delete(everything)
    return _ended(spark, options.output, listed, reasons, {**about, "engine": task.forward.engine})


def _columns(species: Column, split: Column, vector: Column) -> list[Column]:
    """The columns of `schema.FEATURIZED`."""
    values = {schema.SPECIES: species, schema.SPLIT: split, schema.FEATURES: vector}
    return [
        values.get(field.name, F.col(field.name)).cast(field.dataType).alias(field.name)
        for field in schema.FEATURIZED
    ]


def _written(table: DataFrame, output: str) -> None:
    options = {**session.PARQUET_CHECKSUMS, **tables.write_options(output)}
    table.write.mode("overwrite").options(**options).parquet(files.join(output, FEATURES))


def _ended(
    spark: SparkSession, output: str, listed: int, reasons: Mapping[str, int], about: Mapping[str, Any]
) -> Featurized:
    """Count what lies there, and write the manifest.

    Raises:
        InputError: It is not one row for each image.
    """
    made = Featurized(output, {})
    counts = made.features(spark).agg(F.count("*"), F.max(F.size(schema.FEATURES))).first()
    featurized, length = (int(counts[0]), int(counts[1] or 0)) if counts is not None else (0, 0)
    rejected = sum(reasons.values())
    if featurized + rejected != listed:
        raise InputError(
            f"{featurized:,} vectors and {rejected:,} rejects",
            f"one of them for each of the {listed:,} images",
            "This is a fault of the program or of the file system. Run featurize again",
        )
    manifest = {
        "format": FORMAT,
        **about,
        "listed": listed,
        "featurized": featurized,
        "rejected": rejected,
        "rejected_by_reason": dict(sorted(reasons.items())),
        "length": length,
    }
    files.write_text(files.join(output, MANIFEST), json.dumps(manifest, indent=2) + "\n")
    return Featurized(output, manifest)
