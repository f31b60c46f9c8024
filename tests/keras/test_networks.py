"""Networks: by name and from files, the folded standardisation, augmentation, precision."""

import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.preprocessing import StandardScaler

from seedlings_spark.choices import AUGMENTATIONS
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import NetworkError, OptionError, SeedlingsError
from seedlings_spark.models import networks
from seedlings_spark.training import network as carried
from seedlings_spark.training.mixing import Mixing

SIZES = [(32, 32), (33, 33), (64, 64), (96, 48)]


def pixels(num_images, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, *size, 3)).astype("float32")


def small(size=(8, 6), num_classes=3, dtype="float32"):
    """A network whose first convolution pads with zeros, where a wrongly folded mean shows."""
    return keras.Sequential(
        [
            keras.Input((*size, 3), dtype=dtype),
            layers.Conv2D(4, 3, padding="same", activation="tanh", bias_initializer="ones", dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(num_classes, activation="softmax", dtype=dtype),
        ]
    )


def three_parts(error):
    return isinstance(error, SeedlingsError) and error.found and error.expected and error.remedy


def saved(network, file):
    if file.suffix == ".json":
        file.write_text(network.to_json(), encoding="utf-8")
    else:
        network.save(file)
    return file


# --- Files that are no good


def lambda_layer():
    return layers.Lambda(lambda x: x * 2, output_shape=(4,))


CARRIES_CODE = {
    "lambda": lambda: keras.Sequential([keras.Input((4,)), lambda_layer()]),
    "nested lambda": lambda: keras.Sequential(
        [keras.Input((4,)), keras.Sequential([keras.Input((4,)), lambda_layer()]), layers.Dense(2)]
    ),
    "wrapped lambda": lambda: keras.Sequential([keras.Input((5, 4)), layers.TimeDistributed(lambda_layer())]),
}


@pytest.mark.parametrize("suffix", [".keras", ".json"])
@pytest.mark.parametrize("kind", CARRIES_CODE)
def test_a_lambda_layer_is_refused_wherever_it_hides(tmp_path, kind, suffix):
    file = saved(CARRIES_CODE[kind](), tmp_path / f"network{suffix}")
    with pytest.raises(NetworkError, match="carries code") as caught:
        networks.load(file)
    assert three_parts(caught.value)
    assert "safe_mode" not in str(caught.value)  # Keras' own advice is to run the code


def layer_of(module, class_name, **config):
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def sequential_of(layer):
    start = layer_of("keras.layers", "InputLayer", batch_shape=[None, 4], dtype="float32", name="pixels")
    return json.dumps(layer_of("keras", "Sequential", name="network", layers=[start, layer]))


def function_of(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": "function"}


@pytest.mark.parametrize(
    "layer",
    [
        layer_of("os", "system"),
        layer_of("subprocess", "Popen", args=["true"]),
        layer_of("keras.layers", "Activation", activation=function_of("builtins", "print")),
        layer_of("keras.layers", "Activation", activation=function_of("os", "getcwd")),
        layer_of("keras.layers", "StringLookup", vocabulary="/etc/passwd"),
        layer_of("keras.layers", "TFSMLayer", filepath="/tmp"),
    ],
    ids=lambda layer: layer["class_name"],
)
def test_a_configuration_that_reaches_out_of_keras_is_refused(tmp_path, layer):
    file = tmp_path / "network.json"
    file.write_text(sequential_of(layer))
    with pytest.raises(NetworkError) as caught:
        networks.load(file)
    assert three_parts(caught.value)


def test_a_class_of_somebodys_own_is_refused(tmp_path):
    class Own(layers.Layer):
        def call(self, x):
            return x

    file = saved(keras.Sequential([keras.Input((4,)), Own(), layers.Dense(2)]), tmp_path / "network.keras")
    with pytest.raises(NetworkError, match=r"network\.keras, which Keras does not load"):
        networks.load(file)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "3", '"Functional"', "{}", "{'single': 'quotes'}", "[" * 50_000, "\N{SEEDLING}",
     '{"class_name": "Sequential"}', layers.Dense(3).__class__.__name__],
    ids=lambda text: text[:20] or "empty",
)  # fmt: skip
def test_json_that_is_no_network_is_refused(tmp_path, text):
    file = tmp_path / "network.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(NetworkError) as caught:
        networks.load(file)
    assert three_parts(caught.value)
    assert caught.value.found.startswith(str(file))


def test_a_layer_alone_is_no_network(tmp_path):
    file = tmp_path / "network.json"
    file.write_text(json.dumps(layer_of("keras.layers", "Dense", units=3)))
    with pytest.raises(NetworkError, match="holds a Dense"):
        networks.load(file)


def damaged(content):
    middle = content.index(b"config.json") + 40
    return {
        "empty": b"",
        "text": b"a letter to the gardener",
        "picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        "cut in half": content[: len(content) // 2],
        "one byte short": content[:-1],
        "a flipped byte": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }


@pytest.mark.parametrize("kind", damaged(b"config.json" + b"\0" * 100))
def test_a_damaged_file_is_refused(tmp_path, kind):
    file = tmp_path / "a network's file.keras"
    file.write_bytes(damaged(networks.to_bytes(small()))[kind])
    with pytest.raises(NetworkError, match="a network's file") as caught:
        networks.load(file)
    assert three_parts(caught.value)


def test_an_archive_without_a_network_is_refused(tmp_path):
    file = tmp_path / "network.keras"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(NetworkError, match="Keras does not load"):
        networks.load(file)


def test_a_huge_file_is_refused_unread(tmp_path):
    file = tmp_path / "network.keras"
    with file.open("wb") as stream:
        stream.truncate(networks.MAX_NETWORK_BYTES + 1)  # a sparse file
    with pytest.raises(NetworkError, match="2,147,483,649 bytes"):
        networks.load(file)


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "network.keras"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * 3_000_000)
    monkeypatch.setattr(networks, "MAX_NETWORK_BYTES", 1_000_000)
    assert file.stat().st_size < 10_000
    with pytest.raises(NetworkError, match="3,000,000 bytes"):
        networks.load(file)


@pytest.mark.parametrize("name", ["network.h5", "network.KERAS", "network", "network.keras.zip"])
def test_another_ending_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(networks.to_bytes(small()))
    with pytest.raises(NetworkError, match=r"a file that ends in \.keras or \.json"):
        networks.load(tmp_path / name)


@pytest.mark.parametrize("name", ["absent.keras", "absent.json", "."])
def test_a_missing_file_is_said_to_be_missing(tmp_path, name):
    with pytest.raises(NetworkError, match="no file"):
        networks.load(tmp_path / name)


def free_size():
    return keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )


def two_inputs():
    first, second = keras.Input((4,)), keras.Input((4,))
    return keras.Model([first, second], layers.Add()([first, second]))


def two_outputs():
    first = keras.Input((4,))
    return keras.Model(first, [layers.Dense(2)(first), layers.Dense(2)(first)])


@pytest.mark.parametrize("suffix", [".keras", ".json"])
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (free_size, r"takes \(None, None, None, 3\)"),
        (lambda: keras.Sequential([layers.Dense(3)]), "does not know the shape"),
        (two_inputs, "2 inputs and 1 outputs"),
        (two_outputs, "1 inputs and 2 outputs"),
    ],
)
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
def test_a_network_without_one_fixed_input_and_one_output_is_refused(tmp_path, make, found, suffix):
    file = saved(make(), tmp_path / f"network{suffix}")
    with pytest.raises(NetworkError, match=found) as caught:
        networks.load(file)
    assert three_parts(caught.value)


def test_a_keras_file_keeps_its_weights_and_json_draws_new_ones(tmp_path):
    network, images = small(), pixels(3, (8, 6))
    loaded = networks.load(saved(network, tmp_path / "network.keras"))
    assert np.array_equal(loaded(images), network(images))
    drawn = networks.load(saved(network, tmp_path / "network.json"))
    assert [weight.shape for weight in drawn.weights] == [weight.shape for weight in network.weights]
    assert not np.array_equal(drawn(images), network(images))


# --- Networks by name


@pytest.mark.parametrize("name", ["", "Plain", "vgg16", "plain ", "network.h5"])
def test_an_unknown_network_is_refused_by_name(name):
    with pytest.raises(OptionError, match="plain, residual") as caught:
        networks.build(name, (64, 64), 3)
    assert repr(name) in caught.value.found


@pytest.mark.parametrize("size", [(31, 31), (31, 400), (400, 31), (1, 1)])
@pytest.mark.parametrize("name", networks.BY_NAME)
def test_too_small_images_are_refused(name, size):
    with pytest.raises(OptionError, match="at least 32x32") as caught:
        networks.build(name, size, 3)
    assert f"{size[0]}x{size[1]}" in caught.value.found
    assert three_parts(caught.value)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", networks.BY_NAME)
def test_a_named_network_gives_probabilities_for_any_size(name, size):
    network = networks.build(name, size, 3)
    assert network.input_shape == (None, *size, 3)
    outputs = np.asarray(network(pixels(2, size)))
    assert outputs.shape == (2, 3)
    assert outputs.min() >= 0
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("num_classes", [1, 2, 1000])
@pytest.mark.parametrize(("name", "millions", "last"), [("plain", 0.5, 256), ("residual", 0.7, 128)])
def test_a_named_network_has_the_parameters_that_its_docstring_states(name, millions, last, num_classes):
    counts = {networks.build(name, size, num_classes).count_params() for size in SIZES[:3]}
    assert len(counts) == 1
    without_classes = counts.pop() - (last + 1) * num_classes
    assert f"About {millions} million parameters" in networks.BY_NAME[name].__doc__
    assert round(without_classes / 1e6, 1) == millions


def test_the_residual_network_learns_its_moments_and_the_plain_one_drops_out():
    kinds = {
        name: {type(layer) for layer in networks.build(name, (32, 32), 2).layers} for name in networks.BY_NAME
    }
    assert layers.BatchNormalization in kinds["residual"]
    assert layers.Dropout not in kinds["residual"]
    assert layers.Dropout in kinds["plain"]
    assert layers.BatchNormalization not in kinds["plain"]


# --- The folded standardisation


def scaled(images, mean, std):
    """What Spark's StandardScaler makes of pixels: where the std is 0 it multiplies by 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(std > 0, (images.astype("float64") - mean) / std, 0)


def fitted(images, per):
    flat = images.reshape(len(images), -1) if per == "pixel" else images.reshape(-1, 3)
    scaler = StandardScaler().fit(flat)
    shape = images.shape[1:] if per == "pixel" else (3,)
    return scaler.mean_.reshape(shape), np.sqrt(scaler.var_).reshape(shape)


@pytest.mark.parametrize("per", ["channel", "pixel"])
def test_the_folded_network_equals_scaler_and_network(tmp_path, per):
    network, images = small(), pixels(20, (8, 6))
    images[:, 0, 0] = 77  # a pixel that never changes, at the border
    mean, std = fitted(images, per)
    assert (std == 0).any() == (per == "pixel")
    folded = networks.fold_standardization(network, mean, std)
    expected = network(scaled(images, mean, std).astype("float32"))
    np.testing.assert_allclose(folded(images), expected, atol=1e-6)
    loaded = networks.load(saved(folded, tmp_path / "network.keras"))
    assert np.array_equal(loaded(images), folded(images))
    rebuilt = networks.load(saved(folded, tmp_path / "network.json"))
    rebuilt.set_weights(folded.get_weights())
    assert np.array_equal(rebuilt(images), folded(images))
    assert np.array_equal(networks.from_bytes(networks.to_bytes(folded))(images), folded(images))


@pytest.mark.parametrize("per", ["channel", "pixel"])
def test_a_std_of_zero_maps_to_zero(per):
    shape = (3,) if per == "channel" else (2, 2, 3)
    echo = keras.Sequential([keras.Input((2, 2, 3)), layers.Identity()])
    folded = networks.fold_standardization(echo, np.full(shape, 12.0), np.zeros(shape))
    assert np.abs(folded(pixels(5, (2, 2)))).max() < 1e-12


def test_at_the_border_the_padding_is_the_mean_and_not_black():
    ones = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(1, 3, padding="same", kernel_initializer="ones", use_bias=False),
        ]
    )
    folded = networks.fold_standardization(ones, np.full(3, 100.0), np.full(3, 50.0))
    outputs = np.asarray(folded(np.full((1, 4, 4, 3), 150, "float32")))[0, :, :, 0]
    # Every pixel is 1 after scaling, and outside is 0: 3 channels times 4, 6 or 9 pixels under the kernel.
    np.testing.assert_allclose(
        outputs, [[12, 18, 18, 12], [18, 27, 27, 18], [18, 27, 27, 18], [12, 18, 18, 12]]
    )


@pytest.mark.parametrize("name", networks.BY_NAME)
def test_a_named_network_is_folded_with_its_weights_shared(name):
    network, images = networks.build(name, (32, 32), 3), pixels(2, (32, 32))
    mean, std = fitted(images, "channel")
    folded = networks.fold_standardization(network, mean, std)
    expected = network(scaled(images, mean, std).astype("float32"))
    np.testing.assert_allclose(folded(images), expected, atol=1e-5)
    assert [id(weight) for weight in folded.trainable_weights] == [
        id(weight) for weight in network.trainable_weights
    ]


def test_the_folded_constants_are_not_trained():
    folded = networks.fold_standardization(small(), np.full(3, 100.0), np.full(3, 50.0))
    assert len(folded.trainable_weights) == 4
    folded.compile("sgd", "sparse_categorical_crossentropy")
    before = [np.asarray(weight) for weight in folded.layers[1].weights]
    folded.fit(pixels(4, (8, 6)), np.zeros(4), shuffle=False, verbose=0)
    for weight, old in zip(folded.layers[1].weights, before, strict=True):
        assert np.array_equal(weight, old)


def test_a_float64_network_is_folded_in_float64():
    network = small(dtype="float64")
    images = pixels(6, (8, 6)).astype("float64")
    # Keras keeps the constants in float32, so these are exact there.
    draw = np.random.default_rng(0)
    mean, std = draw.integers(0, 2000, (8, 6, 3)) / 8, 3 * 2.0 ** draw.integers(2, 6, (8, 6, 3))
    folded = networks.fold_standardization(network, mean, std)
    assert folded(images).dtype == "float64"
    expected = scaled(images, mean, std)
    for layer in network.layers:
        expected = layer(expected)
    np.testing.assert_allclose(folded(images), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (np.zeros(3), np.ones((8, 6, 3))),
        (np.zeros(4), np.ones(4)),
        (np.zeros((6, 8, 3)), np.ones((6, 8, 3))),
        (np.zeros(()), np.ones(())),
        (np.array([1, np.nan, 2]), np.ones(3)),
        (np.zeros(3), np.array([1, np.inf, 2])),
    ],
)
def test_a_standardisation_that_does_not_fit_is_refused(mean, std):
    with pytest.raises(NetworkError) as caught:
        networks.fold_standardization(small(), mean, std)
    assert three_parts(caught.value)


# --- Augmentation


def augmenter(*names, size=(6, 6), seed=0):
    text = networks.augmentation(names, size)
    network = keras.models.model_from_json(text, custom_objects=networks.CUSTOM_OBJECTS)
    for index, layer in enumerate(network.layers):
        if hasattr(layer, "generator"):
            layer.generator.state.assign([seed + index, 0])
    return network


FLIPS = [lambda x: x, lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x[::-1, ::-1]]


@pytest.mark.parametrize("size", [(6, 6), (6, 4), (3, 7)], ids=str)
def test_a_flip_is_one_of_numpys_four_and_all_occur(size):
    images = pixels(80, size)
    outputs = np.asarray(augmenter("flip", size=size)(images, training=True))
    seen = [
        next(index for index, flip in enumerate(FLIPS) if np.array_equal(flip(image), output))
        for image, output in zip(images, outputs, strict=True)
    ]
    assert set(seen) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("size", "turns"), [((6, 6), (0, 1, 2, 3)), ((6, 4), (0, 2)), ((3, 7), (0, 2))], ids=str
)
def test_a_turn_is_one_of_numpys_and_all_occur_equally_often(size, turns):
    images = pixels(400, size)
    outputs = np.asarray(augmenter("turn", size=size)(images, training=True))
    assert outputs.shape == images.shape
    seen = [
        next(turn for turn in turns if np.array_equal(np.rot90(image, turn), output))
        for image, output in zip(images, outputs, strict=True)
    ]
    for turn in turns:
        assert abs(seen.count(turn) / 400 - 1 / len(turns)) < 0.1  # more than 3 sigma


def test_a_mirrored_image_stays_upright():
    image = pixels(1, (5, 5))[0]
    outputs = np.asarray(augmenter("mirror", size=(5, 5))(np.repeat(image[None], 50, axis=0), training=True))
    assert {output.tobytes() for output in outputs} == {image.tobytes(), np.fliplr(image).tobytes()}


def test_flips_and_turns_together_give_all_eight_symmetries():
    image = pixels(1, (5, 5))[0]
    outputs = np.asarray(
        augmenter("flip", "turn", size=(5, 5))(np.repeat(image[None], 200, axis=0), training=True)
    )
    turned = [np.rot90(image, turn) for turn in range(4)]
    symmetries = {each.tobytes() for each in [*turned, *[one[::-1] for one in turned]]}
    assert len(symmetries) == 8
    assert {output.tobytes() for output in outputs} == symmetries


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_image_of_a_batch_draws_for_itself(name):
    images = np.repeat(pixels(1, (6, 6)), 60, axis=0)
    outputs = np.asarray(augmenter(name)(images, training=True))
    assert len({output.tobytes() for output in outputs}) >= (2 if name in ("mirror", "blur") else 4)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_outside_of_training_nothing_changes(name):
    images = pixels(10, (6, 4))
    assert np.array_equal(augmenter(name, size=(6, 4))(images, training=False), images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_in_training_something_changes(name):
    images = pixels(10, (6, 4))
    assert not np.array_equal(augmenter(name, size=(6, 4))(images, training=True), images)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_seed_gives_the_same_images_and_another_others(name):
    images = pixels(20, (8, 8))
    first, again, other = (
        np.asarray(augmenter(name, size=(8, 8), seed=seed)(images, training=True)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("names", [(name,) for name in AUGMENTATIONS] + [AUGMENTATIONS], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (8, 5)], ids=str)
def test_pixels_stay_pixels(names, size):
    extremes = np.random.default_rng(0).choice([0, 255], (50, *size, 3)).astype("float32")
    outputs = np.asarray(augmenter(*names, size=size)(extremes, training=True))
    assert outputs.shape == extremes.shape
    assert outputs.min() >= 0
    assert outputs.max() <= 255
    assert np.isfinite(outputs).all()


def test_what_is_shown_of_augmentation_is_what_it_makes_and_always_the_same():
    shown = pixels(3, (6, 6)).astype(np.uint8)
    mirrored = networks.augmented(networks.augmentation(["mirror"], (6, 6)), shown, 20)
    assert mirrored.shape == (3, 20, 6, 6, 3)
    for image, made in zip(shown, mirrored, strict=True):
        assert {each.tobytes() for each in made} == {image.tobytes(), image[:, ::-1].tobytes()}
    assert np.array_equal(networks.augmented(networks.augmentation(["mirror"], (6, 6)), shown, 20), mirrored)
    blended = networks.augmented("", shown, 4, Mixing(1.0, 0.0)).astype(float)
    low, high = (pick(shown, np.roll(shown, 1, axis=0)).astype(float) for pick in (np.minimum, np.maximum))
    assert ((blended >= low[:, None] - 1) & (blended <= high[:, None] + 1)).all()
    assert len({each.tobytes() for each in blended[0]}) == 4


def test_sheared_rows_and_columns_move_by_up_to_a_tenth_of_their_distance_both_ways():
    across, down = np.arange(20.0), np.arange(20.0)[:, None]
    ramps = np.stack([across + 0 * down, down + 0 * across, 0 * (across + down)], axis=-1).astype("float32")
    outputs = np.asarray(
        augmenter("shear", size=(20, 20))(np.repeat(ramps[None], 200, axis=0), training=True)
    )
    middle = outputs[:, 5:15, 5:15]  # no reflection here
    rows, columns = ((middle[..., axis] - ramps[5:15, 5:15, axis]) for axis in (0, 1))
    by_row, by_column = rows[:, 5, 0] / 10, columns[:, 0, 5] / 10
    assert np.allclose(rows, by_row[:, None, None] * down[5:15], atol=1e-3)
    assert np.allclose(columns, by_column[:, None, None] * across[5:15], atol=1e-3)
    for found in (by_row, by_column):
        assert -0.1 < found.min() < -0.08 and 0.08 < found.max() < 0.1


def test_dropout_is_scaled_and_travels():
    network = networks.build("plain", (32, 32), 3)
    networks.scale_dropout(network, 2)
    again = carried.from_json(network.to_json())
    rates = [layer.rate for layer in again.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == pytest.approx([0.2, 0.2, 0.2, 0.8])
    networks.scale_dropout(network, 3)
    assert network.layers[-2].rate == 0.9
    networks.scale_dropout(network, 0)
    images = pixels(2, (32, 32))
    assert np.array_equal(network(images, training=True), network(images, training=False))


def test_no_augmentation_is_no_network():
    assert networks.augmentation([], (32, 32)) == ""
    assert networks.augmentation(["none"], (32, 32)) == ""


def test_an_unknown_augmentation_is_refused_by_name():
    with pytest.raises(OptionError, match="'spin', 'Flip'") as caught:
        networks.augmentation(["flip", "spin", "Flip"], (32, 32))
    assert "mirror, flip, turn, rotate, shift, shear, zoom" in caught.value.expected


def test_augmentations_are_applied_in_their_own_order_whatever_was_asked_for():
    asked = networks.augmentation(["contrast", "turn", "flip", "flip"], (32, 32))
    names = [layer["class_name"] for layer in json.loads(asked)["config"]["layers"]]
    assert names == ["InputLayer", "RandomFlip", "RandomFlip", "RandomQuarterTurn", "RandomContrast"]


# --- Precision


def precise(name, fold=True):
    network = small() if name == "small" else networks.build(name, (32, 32), 12)
    images = pixels(4, network.input_shape[1:3])
    return (
        networks.fold_standardization(network, np.full(3, 100.0), np.full(3, 60.0)) if fold else network
    ), images


def leaves(network):
    for layer in network.layers:
        yield from leaves(layer) if isinstance(layer, keras.Model) else [layer]


@pytest.mark.parametrize("name", ["small", "plain", "residual"])
@pytest.mark.parametrize("is_folded", [True, False])
def test_in_mixed_precision_the_last_layer_answers_in_float32_and_the_others_compute_in_bfloat16(
    name, is_folded
):
    network, images = precise(name, is_folded)
    runtime.set_precision(network, "mixed_bfloat16")
    assert network(images).dtype == "float32"
    *others, last = leaves(network)
    assert last.compute_dtype == "float32"
    computing = [
        layer
        for layer in others
        if isinstance(layer, layers.Conv2D | layers.Dense | layers.BatchNormalization)
    ]
    assert computing
    assert {layer.compute_dtype for layer in computing} == {"bfloat16"}
    assert {str(weight.dtype) for weight in network.trainable_weights} == {"float32"}
    np.testing.assert_allclose(np.asarray(network(images)).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["small", "plain", "residual"])
def test_the_standardisation_stays_in_float32(name):
    network, _ = precise(name)
    runtime.set_precision(network, "mixed_bfloat16")
    assert network.get_layer("standardization").compute_dtype == "float32"


@pytest.mark.parametrize("name", ["small", "plain", "residual"])
def test_in_mixed_precision_predictions_are_near_and_survive_saving(name):
    network, images = precise(name)
    exact = np.asarray(network(images))
    content = networks.to_bytes(network)
    runtime.set_precision(network, "mixed_bfloat16")
    mixed = np.asarray(network(images), np.float64)
    assert 0 < np.abs(mixed - exact).max() < 0.05
    assert np.array_equal(networks.from_bytes(networks.to_bytes(network))(images), mixed)
    again = networks.from_bytes(content)
    runtime.set_precision(again, "mixed_bfloat16")
    assert np.array_equal(again(images), mixed)


def test_float32_changes_nothing():
    network, images = precise("small")
    before = np.asarray(network(images))
    runtime.set_precision(network, "float32")
    assert np.array_equal(network(images), before)


def test_files_are_read_from_any_path(hostile_path):
    hostile_path.mkdir()
    assert networks.load(saved(small(), hostile_path / "été 1.keras")).output_shape == (None, 3)


def test_features_are_what_the_last_layer_takes_without_dropout():
    network = networks.build("plain", (32, 32), 3)
    features = networks.features_of(network)
    images = pixels(2, (32, 32)) / 255
    kernel, bias = network.layers[-1].get_weights()
    logits = np.asarray(features(images)) @ kernel + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(network(images), expected, atol=1e-5)
    pooled = next(each.name for each in network.layers if isinstance(each, layers.GlobalAveragePooling2D))
    assert networks.features_of(network, pooled).output_shape == (None, 192)


@pytest.mark.parametrize(("layer", "said"), [("none", "one of its layers"), ("pixels", "one vector a row")])
def test_a_layer_without_features_is_refused(layer, said):
    with pytest.raises(OptionError) as caught:
        networks.features_of(networks.build("plain", (32, 32), 3), layer)
    assert said in caught.value.expected
