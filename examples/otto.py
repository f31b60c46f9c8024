"""The pipeline of Elephas' documentation: index the class, standardise the features, train a Keras network.

    ./spark-submit.sh examples/otto.py                           numbers drawn in the shape of the Otto products
    ./spark-submit.sh examples/otto.py --data otto_train.csv     the products themselves (id, feat_1 ..., target)

Code that was written for Elephas changes one import; its setters and its array of probabilities stay.
"""

import argparse

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.ml import Pipeline
from pyspark.ml.feature import StandardScaler, StringIndexer, VectorAssembler
from pyspark.sql import functions as F

from seedlings_spark.cluster import session
from seedlings_spark.elephas import ElephasEstimator  # the one import: was elephas.ml_model

NUM_FEATURES, NUM_CLASSES = 93, 9


def drawn(num_rows: int) -> pd.DataFrame:
    """Counts, most of them 0, around other means for each class."""
    rng = np.random.default_rng(0)
    classes = rng.integers(NUM_CLASSES, size=num_rows)
    means = rng.gamma(0.3, 2.0, size=(NUM_CLASSES, NUM_FEATURES))
    frame = pd.DataFrame(rng.poisson(means[classes]), columns=[f"feat_{n + 1}" for n in range(NUM_FEATURES)])
    return frame.assign(target=[f"Class_{number + 1}" for number in classes])


def network(num_features: int, num_classes: int) -> keras.Model:
    """Three hidden layers of 512 units with dropout."""
    layers = [keras.Input((num_features,))]
    for _ in range(3):
        layers += [keras.layers.Dense(512, activation="relu"), keras.layers.Dropout(0.5)]
    return keras.Sequential([*layers, keras.layers.Dense(num_classes, activation="softmax")])


parser = argparse.ArgumentParser(description="Train on the Otto products, or on numbers of their shape.")
parser.add_argument("--data", default="", help="CSV, also zipped, with feat_1 ... and target")
parser.add_argument("--rows", type=int, default=5_000, help="how many rows to draw or to take")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--num-workers", type=int, default=2)
given = parser.parse_args()

frame = pd.read_csv(given.data).sample(frac=1, random_state=0) if given.data else drawn(given.rows)
frame = frame[: given.rows]
features = [name for name in frame.columns if name.startswith("feat_")]
classes = frame["target"].nunique()

spark = session.build("otto")
table = spark.createDataFrame(pa.Table.from_pandas(frame, preserve_index=False))
train, test = table.randomSplit([0.85, 0.15], seed=0)

estimator = ElephasEstimator()
estimator.setFeaturesCol("scaled_features")
estimator.setLabelCol("index_category")
estimator.set_keras_model_config(network(len(features), classes).to_json())
estimator.set_optimizer_config(keras.optimizers.serialize(keras.optimizers.Adam(0.001)))
estimator.set_loss("categorical_crossentropy")
estimator.set_metrics(["acc"])
estimator.set_categorical_labels(True)
estimator.set_nb_classes(classes)
estimator.set_num_workers(given.num_workers)
estimator.set_epochs(given.epochs)
estimator.set_batch_size(64)
estimator.set_validation_split(0.1)
estimator.set_verbosity(1)
estimator.set_mode("synchronous")

fitted = Pipeline(
    stages=[
        StringIndexer(inputCol="target", outputCol="index_category"),
        VectorAssembler(inputCols=features, outputCol="features"),
        StandardScaler(inputCol="features", outputCol="scaled_features", withStd=True, withMean=True),
        estimator,
    ]
).fit(train)

best = F.array_position("prediction", F.array_max("prediction")) - 1
right = (best == F.col("index_category")).cast("double")
accuracy = fitted.transform(test).agg(F.avg(right)).first()[0]
print(f"accuracy {accuracy:.3f} on rows that were not trained on")
spark.stop()
