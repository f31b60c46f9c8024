"""How accuracy grows with the number of training images: whether more of them would help.

The same options train on growing parts of the training images, each within the next one, and are measured on the same
validation images. A part of a tenth is gone through ten times as often, so that all take as many steps: what differs is
how many pictures there are, not how long was learned from them.
"""

from dataclasses import replace

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema
from seedlings_spark.config import TrainOptions
from seedlings_spark.reproducibility import seed_for
from seedlings_spark.workflow import pipeline

SHARES = (0.1, 0.25, 0.5, 1.0)
# In the folder of a search, with a folder for each share, in percent.
FOLDER, POINT = "curve", "point.json"


def options_of(options: TrainOptions, share: float, seed: int) -> TrainOptions:
    """The options that a share is trained with.

    Args:
        options: Of the best trial. Its seed is not taken: that it did best may be that seed's luck.
        share: Of the training images.
        seed: Of the search.
    """
    return replace(
        options,
        epochs=round(options.epochs / share),
        patience=round(options.patience / share),
        curriculum_epochs=round(options.curriculum_epochs / share),
        seed=seed_for(seed, "data curve") % 2**31,
    )


def sampled(images: DataFrame, share: float, seed: int) -> DataFrame:
    """All validation images, and a share of each species' training images, at least one; a larger share holds it.

    Args:
        images: As `pipeline.training_images` gives them.
        share: The share.
        seed: Of the search: which images are the first ones.
    """
    if share >= 1:
        return images
    key = F.sha2(F.concat(F.lit(f"{seed} "), F.col(schema.CONTENT_HASH)), 256)
    alike = Window.partitionBy(schema.SPECIES, pipeline.HELD_OUT)
    chosen = images.select(
        schema.CONTENT_HASH,
        schema.SPECIES,
        pipeline.HELD_OUT,
        F.row_number().over(alike.orderBy(key)).alias("place"),
        # Rounded, since 100 * 0.07 is a little more than 7.
        F.ceil(F.round(F.count("*").over(alike) * F.lit(share), 6)).alias("most"),
    ).where(F.col(pipeline.HELD_OUT) | (F.col("place") <= F.col("most")))
    return schema.with_content_hash(images.join(chosen, schema.CONTENT_HASH, "left_semi"))
