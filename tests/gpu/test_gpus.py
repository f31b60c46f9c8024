"""What only a GPU can show: a worker on the one that Spark gave it, the same bits twice, float16 as Keras has it.

In processes of their own: in this one TensorFlow may have started without GPUs.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seedlings_spark.cluster import runtime
from tests.conftest import HANG_SECONDS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("nvidia-smi") is None, reason="no GPU on this machine: nvidia-smi is not there"
)


def _ran(program: str, *arguments: str) -> Any:
    """What a program says in its last line, as JSON."""
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **runtime.worker_environment(1)},
        timeout=HANG_SECONDS,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.splitlines()[-1])


ON_SPARK = """
import json, sys
import numpy as np
from pathlib import Path
from seedlings_spark.cluster import doctor, runtime, session

script = Path(sys.argv[1]) / "gpus.sh"
script.write_text('#!/bin/sh\\necho \\'{"name": "gpu", "addresses": ["0"]}\\'\\n')
script.chmod(0o700)
gpu = {f"spark.{part}.resource.gpu.amount": "1" for part in ("worker", "executor", "task")}
gpu |= {f"spark.{part}.resource.gpu.discoveryScript": str(script) for part in ("worker", "executor")}
spark = session.build("gpus", {"spark.master": "local-cluster[1,1,1024]", "spark.ui.enabled": "false", **gpu})

def on_task(batches):
    import pyarrow as pa
    from pyspark import TaskContext
    for _ in batches:
        pass
    tf = runtime.start(1, runtime.gpu_addresses(TaskContext.get().resources()))
    devices = tf.config.list_physical_devices("GPU")
    growing = all(tf.config.experimental.get_memory_growth(device) for device in devices)
    where = tf.matmul(tf.ones([8, 8]), tf.ones([8, 8])).device
    yield pa.RecordBatch.from_pydict({"gpus": [len(devices)], "growing": [growing], "device": [where]})

(row,) = spark.range(1).mapInArrow(on_task, "gpus long, growing boolean, device string").collect()
checks = doctor.examine(spark, output="", num_workers=1, ports=(0,))
(shown,) = (check.found for check in checks if check.name == "GPUs assigned to tasks")

import keras
from seedlings_spark.estimator import SeedlingsEstimator
rng = np.random.default_rng(0)
rows = [(bytes(each), float(each[0] % 3)) for each in rng.integers(0, 256, (24, 192), np.uint8)]
table = spark.createDataFrame(rows, "image binary, label double")
layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
network = keras.Sequential([keras.Input((8, 8, 3)), *layers])
estimator = SeedlingsEstimator(
    keras_model_config=network.to_json(), loss="sparse_categorical_crossentropy", featuresCol="image",
    labelCol="label", num_workers=1, epochs=2, verbose=0,
)
losses = estimator.fit(table).history["loss"]
spark.stop()
print(json.dumps({**row.asDict(), "shown": shown, "losses": losses}))
"""


def test_a_worker_computes_on_the_gpu_that_spark_has_given_it(tmp_path: Path) -> None:
    found = _ran(ON_SPARK, str(tmp_path))
    assert (found["gpus"], found["growing"]) == (1, True) and found["device"].endswith("GPU:0")
    assert found["shown"].startswith("0 on ")
    assert len(found["losses"]) == 2


IN_THREADS = """
import json
from seedlings_spark.cluster import runtime
tf = runtime.start(1, ("0",))
import keras
import numpy as np
from tests.keras.training import Rows, train

def network(policy):
    keras.utils.set_random_seed(1)
    convolution, dense = keras.layers.Conv2D, keras.layers.Dense
    layers = [
        convolution(8, 3, activation="relu", dtype=policy), keras.layers.BatchNormalization(dtype=policy),
        keras.layers.MaxPooling2D(dtype=policy), keras.layers.Flatten(dtype=policy),
        keras.layers.Dropout(0.5, seed=1, dtype=policy), dense(3, activation="softmax", dtype="float32"),
    ]
    found = keras.Sequential([keras.Input((12, 12, 3)), *layers])
    found.dtype_policy = policy
    return found

rng = np.random.default_rng(0)
rows = [Rows(rng.uniform(size=(size, 12, 12, 3)), rng.integers(0, 3, size)) for size in (13, 10, 8, 11)]
"""

SAME_BITS = """
found = [
    train(network("float32"), rows, optimizer=keras.optimizers.Adam(0.01), num_workers=count).master.state().tobytes()
    for count in (2, 2, 4)
]
print(json.dumps([len(tf.config.list_physical_devices("GPU")), len(set(found))]))
"""

FLOAT16 = """
def trained(policy):
    optimizer = keras.optimizers.SGD(0.01)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**24, dynamic_growth_steps=100)
    return train(network(policy), rows, optimizer=optimizer, num_workers=2)

half, whole = trained("mixed_float16"), trained("float32")
scale = float(half.network.optimizer.dynamic_scale)

def apart(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return max(float(np.abs(first - second).max()) for first, second in pairs)

moved, away = apart(half.network, network("float32")), apart(half.network, whole.network)
print(json.dumps([scale, moved, away, half.history["loss"]]))
"""


def test_two_runs_on_a_gpu_and_one_with_more_workers_have_the_same_bits() -> None:
    assert _ran(IN_THREADS + SAME_BITS) == [1, 1]


def test_a_loss_scale_that_overflows_in_float16_falls_until_steps_are_taken() -> None:
    """From 2 to the 24th, with which every gradient overflows: Keras leaves such steps out and halves the scale."""
    scale, moved, away, losses = _ran(IN_THREADS + FLOAT16)
    assert 1 <= scale < 2.0**24 and all(loss > 0 for loss in losses)
    assert moved > 0 and away < 0.5
