"""Train a network on a corpus and publish it to the store as a new version."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config, corpus, files, networks, pipeline, session
from seedlings_spark.config import TrainOptions
from seedlings_spark.estimator import SeedlingsEstimator
from seedlings_spark.store import ModelStore

# What the estimator calls by the same names.
_SAME = ("loss", "mode", "frequency", "num_workers", "threads", "epochs", "batch_size")
_SAME += ("precision", "memory_budget_mb", "seed")


def main(spark: SparkSession, options: TrainOptions) -> None:
    session.require_slots(spark, options.num_workers)  # at once: the estimator asks only when it is its turn
    prepared, store = corpus.load(options.corpus), ModelStore(options.store, options.name)
    run = options.run or files.join(options.store, options.name, "runs", spark.sparkContext.applicationId)
    images = pipeline.training_images(spark, prepared)
    steps = pipeline.num_steps(images, options.num_workers, options.batch_size, options.epochs)
    schedule = (options.optimizer, options.learning_rate, options.schedule, steps)
    estimator = SeedlingsEstimator(
        **config.chosen(options, *_SAME),
        optimizer_config=pipeline.optimizer(*schedule),
        class_weight="" if options.class_weight == "none" else options.class_weight,
        augmentation=networks.augmentation(options.augment, prepared.image_size),
        verbose=1,
    )
    pipeline.set_network(estimator, options.network, prepared)
    estimator.set_callbacks(pipeline.callbacks(run, options.patience))
    about = pipeline.about(prepared, config.plain(options), run)
    pipeline.begin_run(run, about)
    scaling = config.chosen(options, "scaler", "scaler_images")
    model = pipeline.pipeline(prepared, estimator, **scaling).fit(images)
    version = pipeline.publish(store, model, about=about, promote=options.promote)
    print(cli.table(pipeline.summary(version, run, promoted=options.promote)))


if __name__ == "__main__":
    sys.exit(cli.run("train", TrainOptions, main))
