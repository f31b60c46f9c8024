"""A program of one's own: learn from photographs, predict others, and say which species needs a closer look.

    ./spark-submit.sh examples/program.py --photos photos --unknown new-photos --output made

The script runs it as it runs a job: on this machine, or on the cluster that --master names. Started again, it does
only what is not done.
"""

import argparse

from pyspark.sql import functions as F

import seedlings_spark as ss
from seedlings_spark import files, scoring
from seedlings_spark.cluster import session

parser = argparse.ArgumentParser(description="Learn from photographs and predict others.")
parser.add_argument("--photos", required=True, help="one folder for each species")
parser.add_argument("--unknown", required=True, help="folder of photographs to predict")
parser.add_argument("--output", required=True, help="folder for what is made")
parser.add_argument("--epochs", type=int, default=30)
given = parser.parse_args()
corpus, store, run, scores = (f"{given.output}/{name}" for name in ("corpus", "store", "run", "scores"))

spark = session.build("photographs")
if not files.exists(f"{corpus}/manifest.json"):
    ss.prepare(spark, ss.PrepareOptions(images=given.photos, corpus=corpus))
ss.train(spark, ss.TrainOptions(corpus=corpus, store=store, run=run, epochs=given.epochs))
ss.score(spark, ss.ScoreOptions(images=given.unknown, store=store, output=scores, incremental=True))

by_species = scoring.latest(spark, scores).groupBy("predicted_species")
looked_at = by_species.agg(F.count("*").alias("images"), F.avg("confidence").alias("confidence"))
looked_at.orderBy("confidence").show(truncate=False)
spark.stop()
