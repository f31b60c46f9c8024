"""Arithmetic on lists of arrays, held as one flat vector.

A model's weights, gradients and optimizer slots travel and are summed as one vector, in the order in which
Keras lists them: one message, one addition, no dictionary of names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A flat vector of float32 or float64.
Vector = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Layout:
    """Where each array lies in a flat vector.

    Args:
        shapes: One shape an array, in order.
        dtype: Dtype of the vector: "float32" or "float64".
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: str

    @classmethod
    def of(cls, arrays: Sequence[NDArray[Any]]) -> "Layout":
        """The layout of these arrays: float64 if any of them is, else float32."""
        wide = any(array.dtype == np.float64 for array in arrays)
        return cls(tuple(tuple(array.shape) for array in arrays), "float64" if wide else "float32")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each array."""
        return tuple(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Number of elements of the vector."""
        return sum(self.sizes)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the vector."""
        return self.size * np.dtype(self.dtype).itemsize

    def flatten(self, arrays: Sequence[NDArray[Any]]) -> Vector:
        """Copy arrays of these shapes into a new vector."""
        found = tuple(tuple(array.shape) for array in arrays)
        if found != self.shapes:
            raise ValueError(f"arrays of shapes {found}, expected {self.shapes}")
        if not arrays:
            return np.zeros(0, self.dtype)
        return np.concatenate([np.asarray(array, self.dtype).ravel() for array in arrays])

    def split(self, vector: Vector) -> list[Vector]:
        """Views of the vector in these shapes."""
        if vector.shape != (self.size,):
            raise ValueError(f"a vector of shape {vector.shape}, expected ({self.size},)")
        edges = np.cumsum(self.sizes)[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(vector, edges), self.shapes, strict=True)]
