"""One step of the smallest member of each family of Keras' applications: minutes, and so not among the quick tests."""

import numpy as np
import pytest

from seedlings_spark.choices import BACKBONES
from seedlings_spark.models import networks
from seedlings_spark.training import network as carried

SMALLEST = [
    *(
        "ConvNeXtTiny",
        "DenseNet121",
        "EfficientNetB0",
        "EfficientNetV2B0",
        "InceptionResNetV2",
        "InceptionV3",
    ),
    *(
        "MobileNet",
        "MobileNetV2",
        "MobileNetV3Large",
        "NASNetMobile",
        "ResNet50",
        "ResNet50V2",
        "VGG16",
        "Xception",
    ),
    "efficientnet-lite2",
]


@pytest.mark.parametrize("name", SMALLEST)
def test_a_family_trains_a_step_at_its_least_size(name):
    size = BACKBONES[name]
    network = carried.from_bytes(carried.to_bytes(networks.build(name, (size, size), 3), compiled=False))
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype("float32")
    before = [np.array(weight) for weight in network.trainable_weights]
    network.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    assert np.isfinite(network.train_on_batch(images, np.array([0, 2])))
    changed = [
        not np.array_equal(old, new) for old, new in zip(before, network.trainable_weights, strict=True)
    ]
    assert np.mean(changed) > 0.9
    with pytest.raises(Exception, match=f"at least {size}x{size}"):
        networks.build(name, (size - 1, size), 3)
