import numpy as np
import pytest

from seedlings_spark.training.weights import Layout


def test_what_was_flattened_splits_into_the_same_arrays() -> None:
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.float32(7).reshape(()),
        np.zeros((0, 4), np.float32),
    ]
    layout = Layout.of(arrays)
    vector = layout.flatten(arrays)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7] and layout.size == 7 and layout.nbytes == 28
    for part, array in zip(layout.split(vector), arrays, strict=True):
        assert part.shape == array.shape and (part == array).all()


def test_one_wide_array_makes_the_vector_wide() -> None:
    assert Layout.of([np.zeros(1, np.float32), np.zeros(1, np.float64)]).dtype == "float64"
    assert Layout.of([np.zeros(1, np.float16)]).dtype == "float32"


def test_arrays_and_vectors_of_another_shape_are_refused() -> None:
    layout = Layout.of([np.zeros((2, 2))])
    with pytest.raises(ValueError, match=r"expected \(\(2, 2\),\)"):
        layout.flatten([np.zeros(4)])
    with pytest.raises(ValueError, match=r"expected \(4,\)"):
        layout.split(np.zeros(5))
