"""The benchmark of engines: what its numbers mean, and that they are taken."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from seedlings_spark.benchmark import inference


def measured(engine: str, threads: int, batch: int, speed: float, accuracy: float) -> inference.Measurement:
    seconds = batch / speed
    precision = "int8" if engine == "onnxruntime" else "float32"
    numbers = (speed, seconds, 2 * seconds, 0.1, 100 * 2**20, 10**6, accuracy)
    return inference.Measurement(engine, precision, threads, batch, *numbers)


def test_bulk_is_recommended_by_images_a_second_of_a_core_and_online_by_the_slowest_calls() -> None:
    found = [
        measured("tensorflow", 2, 64, 9000, 0.9),
        measured("openvino", 1, 64, 2000, 0.9),
        measured("openvino", 1, 1, 400, 0.9),
        measured("tensorflow", 2, 1, 500, 0.9),
    ]
    said = inference.recommendation(found)
    assert "Bulk: openvino in float32, a process of one thread for each core, 64 images a call: 2,000" in said
    assert "Online: tensorflow in float32 with 2 threads: 2.0 ms an image, 99 of 100 within 4.0 ms" in said
    better = [*found, measured("onnxruntime", 1, 1, 3000, 0.896)]
    assert inference.recommendation(better).count("onnxruntime in int8") == 2
    worse = [*found, measured("onnxruntime", 1, 1, 3000, 0.894)]
    assert inference.recommendation(worse) == said


def test_an_engine_computes_in_a_process_of_its_own(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = inference._requests

    def some(*args: Any) -> list[dict[str, Any]]:  # TensorFlow takes long
        first, *_, last = every(*args)
        return [first, last]

    monkeypatch.setattr(inference, "_requests", some)
    task = inference.Inference(image_size=32, batches=(1, 8), seconds=0.01)
    found = inference.measure_inference(
        spark, task, folder=str(tmp_path / "made"), json_file=str(tmp_path / "numbers.json")
    )
    one, eight, *of_phones = (inference.Measurement(**each) for each in found["measurements"])
    assert (one.engine, one.precision, one.threads, one.batch) == ("onnxruntime", "float32", 1, 1)
    assert eight.images_per_second == pytest.approx(8 / eight.p50) and one.p99 >= one.p50
    assert [(each.engine, each.precision) for each in of_phones] == [("litert", "int8")] * 2
    assert 0 < of_phones[0].disk < one.disk / 2
    assert 50 * 2**20 < one.memory < 600 * 2**20  # without TensorFlow
    assert json.loads((tmp_path / "numbers.json").read_text())["measurements"][0] == dataclasses.asdict(one)
    assert (tmp_path / "numbers.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "made").exists() and "Online: onnxruntime" in inference.report(found)
