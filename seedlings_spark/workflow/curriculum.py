"""How difficult each training image is, as a network finds it that has been trained for a few epochs: its loss.

RUN/curriculum/            metrics and checkpoints of that training
RUN/curriculum/losses/     content hash and loss of each training image
"""

import logging
from collections.abc import Callable

from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import DoubleType, StructField, StructType

from seedlings_spark import files, schema
from seedlings_spark.choices import BY_LOSS
from seedlings_spark.corpus import tables
from seedlings_spark.errors import OptionError
from seedlings_spark.training.curriculum import LEVELS
from seedlings_spark.workflow import pipeline, runs

_log = logging.getLogger(__name__)
FOLDER, DIFFICULTY = "curriculum", "difficulty"
LOSSES, _WHOLE = "losses", "losses.txt"  # the latter comes last, and says that the table is whole
_LAYOUT = StructType([schema.EVALUATED[schema.CONTENT_HASH], StructField(DIFFICULTY, DoubleType(), False)])
# A loss of more tells nothing more.
_LEAST_PROBABILITY = 1e-12


def epochs_of(epochs: int) -> int:
    """For how many epochs the network is trained that tells, of a run of so many."""
    return max(1, round(epochs / 10))


def column_of(chosen: str) -> str:
    """The column of the images that a choice of `choices.CURRICULA` goes by; "" for none."""
    return {"none": "", BY_LOSS: DIFFICULTY}.get(chosen, chosen)


def pacing(num_epochs: int) -> list[int]:
    """From which epoch, counted from 1, each quarter is in.

    Args:
        num_epochs: Epochs before all of them are.
    """
    return [1 - (-level * num_epochs // (LEVELS - 1)) for level in range(LEVELS)]


def with_loss(images: DataFrame, run: str, fit: Callable[[str, DataFrame], PipelineModel]) -> DataFrame:
    """The images with a column `DIFFICULTY`: the loss of each image to train on; 0 of those that are held out.

    What an earlier attempt has computed is taken as it is.

    Args:
        images: As `pipeline.training_images` gives them.
        run: Folder of the run; what is made lies in `curriculum` below it.
        fit: Trains: given a folder of the run's and the images.

    Raises:
        OptionError: The network gives no probabilities.
    """
    path = files.join(run, FOLDER)
    losses, whole = files.join(path, LOSSES), files.join(path, _WHOLE)
    if not files.exists(whole):
        _log.info("a first pass, by whose loss the images are ordered")
        predicted = fit(path, images).transform(images.where(~F.col(pipeline.HELD_OUT)))
        if schema.PROBABILITY not in predicted.columns:
            raise OptionError(
                "--curriculum loss with a network that gives no probabilities",
                "one whose loss of an image is known",
                "Choose another --loss, or --curriculum length",
            )
        right = vector_to_array(F.col(schema.PROBABILITY))[F.col(schema.LABEL).cast("int")]
        # Rounded, so that what machines differ by in the last bits moves no image to another quarter.
        loss = F.round(-F.log(F.greatest(right, F.lit(_LEAST_PROBABILITY))), 4).alias(DIFFICULTY)
        table = predicted.select(schema.CONTENT_HASH, loss)
        table.write.mode("overwrite").options(**tables.write_options(losses)).parquet(losses)
        files.write_text(whole, f"{losses} is whole\n")
        files.delete(files.join(path, runs.CHECKPOINTS))
    # Of copies of a picture, which a corpus has, one.
    found = tables.parquet(images.sparkSession, losses, _LAYOUT).dropDuplicates([schema.CONTENT_HASH])
    joined = images.join(found, schema.CONTENT_HASH, "left")
    known = F.when(F.col(pipeline.HELD_OUT), F.lit(0.0)).otherwise(F.col(DIFFICULTY))
    return schema.with_content_hash(joined.withColumn(DIFFICULTY, known).select(*images.columns, DIFFICULTY))
