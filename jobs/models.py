"""List, promote, roll back, import and delete model versions."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli
from seedlings_spark.config import ModelsOptions
from seedlings_spark.models.store import ModelStore, table


def main(spark: SparkSession, options: ModelsOptions) -> None:
    store = ModelStore(options.store, options.name, options.require_signature)
    if options.action == "promote":
        store.promote(options.model_version)
    elif options.action == "rollback":
        store.rollback()
    elif options.action == "sign":
        store.sign(options.model_version, options.key)
    elif options.action == "delete":
        freed = store.delete(options.model_version)
        print(f"{store.name} {options.model_version} is deleted: {freed / 1e6:,.1f} MB are freed\n")
    elif options.action == "import":
        from seedlings_spark.workflow import pipeline

        pipeline.import_network(
            store,
            options.network,
            options.classes,
            aspect=options.aspect,
            promote=options.promote,
            outputs=options.outputs,
        )
    print(table(store))


if __name__ == "__main__":
    sys.exit(cli.run("models", ModelsOptions, main))
