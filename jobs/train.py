"""Train a network on a corpus and publish it to the store as a new version."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config, corpus, files, networks, pipeline
from seedlings_spark.config import TrainOptions
from seedlings_spark.estimator import SeedlingsEstimator
from seedlings_spark.store import ModelStore


def main(spark: SparkSession, options: TrainOptions) -> None:
    prepared, store = corpus.load(options.corpus), ModelStore(options.store, options.name)
    run = options.run or files.join(options.store, options.name, "runs", spark.sparkContext.applicationId)
    images = pipeline.training_images(spark, prepared)
    steps = pipeline.num_steps(images, options.num_workers, options.batch_size, options.epochs)
    estimator = SeedlingsEstimator(
        loss=options.loss,
        optimizer_config=pipeline.optimizer(
            options.optimizer, options.learning_rate, options.schedule, steps
        ),
        mode=options.mode,
        frequency=options.frequency,
        num_workers=options.num_workers,
        threads=options.threads,
        epochs=options.epochs,
        batch_size=options.batch_size,
        class_weight=options.class_weight,
        augmentation=networks.augmentation(options.augment, prepared.image_size),
        precision=options.precision,
        memory_budget_mb=options.memory_budget_mb,
        seed=options.seed,
        verbose=1,
    )
    pipeline.set_network(estimator, options.network, prepared)
    estimator.set_callbacks(pipeline.callbacks(run, options.patience))
    about = pipeline.about(prepared, config.plain(options), run)
    pipeline.begin_run(run, about)
    stages = pipeline.pipeline(
        prepared, estimator, scaler=options.scaler, scaler_images=options.scaler_images
    )
    version = pipeline.publish(store, stages.fit(images), about=about, promote=options.promote)
    print(cli.table(pipeline.summary(version, run, promoted=options.promote)))


if __name__ == "__main__":
    sys.exit(cli.run("train", TrainOptions, main))
