"""A program for the tests: training whose workers raise after so many pushes, each rank once.

`raising.py MODE FOLDER K K`: the pushes after which rank 0 and rank 1 raise. Prints the run's record, and the hash
of its weights, as JSON. Without numbers nobody raises.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from pyspark import TaskContext
from pyspark.ml.linalg import Vectors

from seedlings_spark.cluster import session
from seedlings_spark.elephas import ElephasEstimator

EPOCHS, BATCH_SIZE, ROWS = 6, 8, 400


class Raising(keras.layers.Layer):  # type: ignore[misc]
    """Changes nothing. In a worker it lets the connection raise, as a network or a disk does that goes away.

    Args:
        folder: Shared by all; a file in it for each rank that has raised.
        pushes: Pushes of each rank, before it raises.
    """

    def __init__(self, folder: str, pushes: list[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder, self.pushes = folder, pushes

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "folder": self.folder, "pushes": self.pushes}

    def call(self, inputs: Any) -> Any:
        return inputs

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        context = TaskContext.get()
        rank = context.partitionId() if context is not None else len(self.pushes)
        if rank >= len(self.pushes):
            return
        from seedlings_spark.training.client import ParameterClient

        folder, limit, result, pushed = Path(self.folder), self.pushes[rank], ParameterClient.result, []

        def raising(client: Any, header: Any, payload: Any = b"") -> Any:
            answer = result(client, header, payload)
            pushed.append(header["number"])
            if len(pushed) == limit:
                try:
                    (folder / f"rank {rank}").touch(exist_ok=False)
                except FileExistsError:
                    return answer
                raise OSError(f"rank {rank} raises after {limit} pushes")
            return answer

        ParameterClient.result = raising  # type: ignore[method-assign]


def main() -> None:
    mode, folder, *pushes = sys.argv[1:]
    spark = session.build("raising")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(ROWS, 8))
    rows = [(Vectors.dense(x), float(x[0] + x[1] > 0)) for x in values]
    table = spark.createDataFrame(rows, ["features", "label"])
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((8,)),
            Raising(folder, [int(number) for number in pushes]),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    estimator = ElephasEstimator(
        keras_model_config=network.to_json(),
        custom_objects={"Raising": Raising},
        optimizer_config={"class_name": "Adam", "config": {"learning_rate": 0.01}},
        loss="sparse_categorical_crossentropy",
        metrics=["acc"],
        mode=mode,
        frequency="batch",
        num_workers=2,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        seed=1,
        validation_split=0.2,
        verbose=0,
        categorical=False,
        nb_classes=2,
    )
    model = estimator.fit(table)
    bits = hashlib.sha256(b"".join(weight.tobytes() for weight in model.weights)).hexdigest()
    print("RECORD " + json.dumps({**model.record, "bits": bits}))
    spark.stop()


if __name__ == "__main__":
    main()
