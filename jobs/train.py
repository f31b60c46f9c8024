"""Train a network on a corpus and publish it to the store as a new version."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli, config, corpus, files
from seedlings_spark.cluster import session
from seedlings_spark.config import TrainOptions
from seedlings_spark.estimator import SeedlingsEstimator
from seedlings_spark.lock import Lock
from seedlings_spark.models import networks
from seedlings_spark.models.store import ModelStore
from seedlings_spark.workflow import pipeline, runs

# What the estimator calls by the same names.
_SAME = ("loss", "mode", "rule", "frequency", "num_workers", "threads", "epochs", "batch_size")
_SAME += ("precision", "memory_budget_mb", "server_port", "encrypt", "seed")


def main(spark: SparkSession, options: TrainOptions) -> None:
    # At once: the estimator asks only when it is its turn.
    session.require_slots(spark, options.num_workers, options.wait_executors)
    prepared, store = corpus.load(options.corpus), ModelStore(options.store, options.name)
    application = spark.sparkContext.applicationId
    run = options.run or files.join(options.store, options.name, "runs", application)
    about = pipeline.about(prepared, config.plain(options), run)
    with Lock(run, application) as lock:
        if published := runs.begin(run, about, application):
            print(cli.table([("run", f"{run} has already published {options.name} {published}")]))
            return
        with cli.recorded(lambda code, error: runs.fail(run, code, error)):
            images = pipeline.training_images(spark, prepared)
            sizes = (options.num_workers, options.batch_size, options.epochs)
            is_shared = options.mode != "synchronous" and options.frequency == "batch"
            steps = pipeline.num_steps(images, *sizes, is_shared=is_shared)
            schedule = (options.optimizer, options.learning_rate, options.schedule, steps, options.momentum)
            estimator = SeedlingsEstimator(
                **config.chosen(options, *_SAME),
                optimizer_config=pipeline.optimizer(*schedule),
                class_weight="" if options.class_weight == "none" else options.class_weight,
                augmentation=networks.augmentation(options.augment, prepared.image_size),
                checkpoint_path=files.join(run, runs.CHECKPOINTS),
                verbose=1,
            )
            pipeline.set_network(estimator, options.network, prepared)
            kept = config.chosen(options, "keep", "patience", "epochs")
            estimator.set_callbacks(pipeline.callbacks(run, prepared, **kept, check=lock.check))
            scaling = config.chosen(options, "scaler", "scaler_images")
            model = pipeline.pipeline(prepared, estimator, **scaling).fit(images)
            trained = (spark, store, model, prepared)
            version, promotion = pipeline.publish_trained(*trained, about=about, check=lock.check)
            runs.end(run, version.version)
    print(cli.table(pipeline.summary(version, run, promotion)))


if __name__ == "__main__":
    sys.exit(cli.run("train", TrainOptions, main))
