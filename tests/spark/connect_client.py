"""A client of Spark Connect in a process of its own: what it finds, as JSON on the last line.

In one process Spark's functions are either those of Connect or those of a JVM.
"""

import dataclasses
import json
import sys
from typing import Any

from pyspark.sql import SparkSession

from seedlings_spark import scoring, workflow
from seedlings_spark.config import ScoreOptions
from seedlings_spark.errors import ClusterError, InputError
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel


def main(address: str, place: str, images: str) -> None:
    exec(sys.argv[5], {"SparkSession": SparkSession, "scoring": scoring})
    spark = SparkSession.builder.remote(address).getOrCreate()
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(images)
    found: dict[str, Any] = {}

    scoring.register(spark, "species", f"{place}/store")
    details = files.selectExpr("path", "species_details(content) as details")
    found["sql"] = {row.path: row.details.asDict() for row in details.collect()}

    options = ScoreOptions(images=images, store=f"{place}/store", output=f"{place}/scores")
    run = workflow.score(spark, dataclasses.replace(options, batch_size=4))
    rows = spark.read.parquet(f"{run.path}/predictions").collect()
    found["score"] = {row.path: [row.predicted_species, row.probabilities] for row in rows}
    found["rejected"] = run.manifest["rejected_by_reason"]

    import keras

    network = keras.saving.load_model(f"{place}/network.keras")
    model = SeedlingsModel.from_network(network, json.loads(sys.argv[4]))
    model.use_onnx()
    pixels = spark.read.parquet(f"{place}/pixels")
    transformed = model.transform(pixels).orderBy("number").collect()
    found["transform"] = [[row.predicted_species, row.probability.tolist()] for row in transformed]
    found["hostile"] = []
    for number in range(2):
        try:
            workflow.score(spark, dataclasses.replace(options, images=f"{place}/{number}.parquet"))
        except InputError as error:
            found["hostile"].append(str(error))
    try:
        SeedlingsEstimator().fit(pixels)
    except ClusterError as error:
        found["fit"] = str(error)
    print(json.dumps(found))


main(*sys.argv[1:4])
