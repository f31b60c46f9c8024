"""Mixed rows: what is taken from which, and that their loss is that of mixed labels."""

from typing import Any

import keras
import numpy as np
import pytest
from scipy import stats

from seedlings_spark.errors import OptionError
from seedlings_spark.reproducibility import seed_for
from seedlings_spark.training.mixing import Mixing, check
from seedlings_spark.training.shard import epoch_order
from tests.keras.test_synchronous import _network, _rows
from tests.keras.training import train

IMAGES = np.random.default_rng(0).uniform(0, 255, (600, 9, 7, 3)).astype("float32")
OTHERS = np.roll(IMAGES, 1, axis=0)


def mixed(mixup: float, cutmix: float) -> tuple[np.ndarray, np.ndarray]:
    found, share = Mixing(mixup, cutmix)(IMAGES)
    return np.asarray(found), np.asarray(share)


def is_blend(found: np.ndarray, share: np.ndarray) -> np.ndarray:
    each = share[:, None, None, None]
    return np.isclose(found, each * IMAGES + (1 - each) * OTHERS, atol=1e-3).all(axis=(1, 2, 3))


def is_cut(found: np.ndarray, share: np.ndarray) -> np.ndarray:
    own, others = (found == IMAGES).all(axis=3), (found == OTHERS).all(axis=3)
    is_rectangle = others == others.any(axis=2, keepdims=True) & others.any(axis=1, keepdims=True)
    return (
        (own ^ others).all(axis=(1, 2)) & is_rectangle.all(axis=(1, 2)) & np.isclose(own.mean((1, 2)), share)
    )


def test_each_image_is_mixed_with_the_one_before_it_by_its_share() -> None:
    found, share = mixed(0.4, 0.0)
    assert is_blend(found, share).all()
    assert stats.kstest(share, stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    found, share = mixed(0.0, 1.0)
    assert is_cut(found, share).all()
    assert share.min() < 0.2 and share.max() == 1 and 0.5 < share.mean() < 0.75  # a border cuts some
    found, share = mixed(0.4, 1.0)
    cut = is_cut(found, share)
    assert (cut | is_blend(found, share)).all() and 200 < cut.sum() < 400


@pytest.mark.parametrize("labels", ["index", "one_hot"])
def test_a_mixed_batch_gives_the_gradient_of_its_mixed_labels(labels: str) -> None:
    import tensorflow as tf

    network, (rows,) = _network(), _rows([12])
    loss = "sparse_categorical_crossentropy" if labels == "index" else "categorical_crossentropy"
    given: dict[str, Any] = {"loss": loss, "labels": labels, "batch_size": 12, "mixup": 0.8, "epochs": 1}
    outcome = train(network, [rows], optimizer=keras.optimizers.SGD(0.1), **given)

    order = epoch_order(0, 0, 0, 12, 40)
    features, weights = rows.features[order], rows.weights[order]  # type: ignore[index]
    targets = np.eye(3)[rows.labels[order]] * weights[:, None]
    mixing = Mixing(0.8, 0.0)
    mixing.state.assign([seed_for(0, "layer", 0, 0, 0, 0), 0])
    share = np.asarray(mixing(features)[1], np.float64)[:, None]
    features = share * features + (1 - share) * np.roll(features, 1, axis=0)
    targets = share * targets + (1 - share) * np.roll(targets, 1, axis=0)
    variables = [variable.value for variable in network.trainable_variables]
    with tf.GradientTape() as tape:
        crossentropy = -tf.reduce_mean(tf.reduce_sum(targets * tf.math.log(network(features)), axis=1))
        total = crossentropy + sum(network.losses)
    for ours, before, gradient in zip(
        outcome.network.trainable_variables, variables, tape.gradient(total, variables), strict=True
    ):
        np.testing.assert_allclose(np.asarray(ours), before - 0.1 * gradient, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((-1.0, 0.0, (5,), "float32"), "mixup=-1.0"),
        ((0.0, float("nan"), (5,), "float32"), "cutmix=nan"),
        ((0.2, 1.0, (5,), "float32"), "cutmix=1"),
        ((0.2, 0.0, (8, 8, 3), "uint8"), "mixup=0.2 for a network whose input is of the type uint8"),
    ],
)
def test_what_cannot_be_mixed_is_refused(given: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        check(*given)
