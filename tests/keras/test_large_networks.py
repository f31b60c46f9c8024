"""A network of 100 MB: the same bits with any number of workers, whoever makes the mean."""

from typing import Any

import keras
import numpy as np

from tests.conftest import with_all
from tests.keras.training import Rows, launcher, train

SIZE, CLASSES = 32, 12


def _rows() -> list[Rows]:
    rng = np.random.default_rng(0)
    return [
        Rows(rng.uniform(0, 255, (size, SIZE, SIZE, 3)), rng.integers(0, CLASSES, size))
        for size in (4, 3, 4, 4)
    ]


@with_all
def test_a_resnet50_trains_to_the_same_bits_with_two_and_four_workers_in_both_exchanges() -> None:
    keras.utils.set_random_seed(0)
    network = keras.applications.ResNet50(weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES)
    assert 90 < network.count_params() * 4 / 2**20 < 100
    start = [weight.copy() for weight in network.get_weights()]

    def run(exchange: str, num_workers: int) -> tuple[bytes, Any]:
        outcome = train(
            network,
            _rows(),
            optimizer=keras.optimizers.SGD(1e-3, momentum=0.9),
            epochs=1,
            num_workers=num_workers,
            exchange=exchange,
            batch_size=2,
            budget_bytes=10**6,
            launch=launcher(_rows()),
        )
        trained = outcome.master.network.get_weights()
        assert all(np.isfinite(weight).all() for weight in trained)
        assert any((one != other).any() for one, other in zip(start, trained, strict=True))
        return outcome.master.state().tobytes(), outcome.history

    first = run("driver", 2)
    assert run("driver", 4) == first
    assert run("workers", 2) == first
    assert run("workers", 4) == first
