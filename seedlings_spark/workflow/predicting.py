"""A version's predictions of a corpus, and their numbers."""

from collections.abc import Sequence

from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession

from seedlings_spark import schema
from seedlings_spark.corpus import Corpus, look_alikes
from seedlings_spark.errors import CorpusError, SeedlingsError
from seedlings_spark.estimator import SeedlingsModel, elephas, features
from seedlings_spark.models import stages
from seedlings_spark.models.store import NETWORK, ONNX, ModelVersion
from seedlings_spark.reports import evaluation


def predictions(
    spark: SparkSession, version: ModelVersion, corpus: Corpus, split: str, engine: str = "auto"
) -> DataFrame:
    """A version's predictions for a split of a corpus, beside the true species.

    Args:
        spark: The session.
        version: The version.
        corpus: The corpus.
        split: Split of the corpus.
        engine: One of `choices.ENGINES`.

    Raises:
        CorpusError: The images have another size than the model takes, or there are none.
    """
    if corpus.image_size != version.image_size:
        found, expected = ("x".join(map(str, size)) for size in (corpus.image_size, version.image_size))
        raise CorpusError(
            f"{corpus.path} with images of {found} pixels for {version.name} {version.version}",
            f"images of {expected}, as that model takes",
            f"Prepare the corpus with --image-size {version.image_size[0]}, or choose another --model-version",
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
    model = load(version)
    last = model.stages[-1]
    if isinstance(last, SeedlingsModel):
        last.set(last.engine, engine)
    return model.transform(corpus.images(spark, split))


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
    probability = schema.PROBABILITY if schema.PROBABILITY in predicted.columns else ""
    matrix = evaluation.confusion_matrix(predicted, classes, probability=probability)
    if int(matrix.sum()) != corpus.num_images(split):
        raise SeedlingsError(
            f"predictions for {matrix.sum():,} images",
            f"one for each of the {corpus.num_images(split):,} in the split {split!r} of {corpus.path}",
            "A stage of the model's pipeline leaves rows out or doubles them (see its handleInvalid): publish one that"
            " does not",
        )
    return evaluation.evaluate(matrix, classes)


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
    own = (SeedlingsModel, elephas.ElephasTransformer, features.ImageStandardizerModel)
    names = {f"{each.__module__}.{each.__name__}": each for each in own}
    networks_of = [name for name, each in names.items() if issubclass(each, SeedlingsModel)]
    stages.check(folder, names, dict.fromkeys(networks_of, (NETWORK, ONNX)))


def about_evaluation(version: ModelVersion, corpus: Corpus, split: str) -> dict[str, object]:
    """What a report says of where its numbers come from."""
    return {
        "model": version.name,
        "model_version": version.version,
        "split": split,
        "corpus": corpus.path,
        "corpus_fingerprint": corpus.fingerprint,
        "trained_on_this_corpus": version.manifest.get("corpus", {}).get("fingerprint") == corpus.fingerprint,
    }
