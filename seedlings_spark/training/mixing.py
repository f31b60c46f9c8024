"""Mixing: each row of a batch takes on a part of another one, and of its label.

The other one is the row before it in the batch, whose order is random anyway. The loss is the mean of those of both
labels, weighted by their shares: of crossentropy that is the loss of the mixed label.
"""

from typing import Any

from seedlings_spark.errors import OptionError


def check(mixup: float, cutmix: float, row_shape: tuple[int, ...], dtype: str) -> None:
    """Refuse what cannot be mixed so.

    Args:
        mixup: As for `Mixing`.
        cutmix: As for `Mixing`.
        row_shape: Shape of one row's features.
        dtype: Of the network's input.

    Raises:
        OptionError: A number below 0, rectangles of rows that are no images, or a blend of whole numbers.
    """
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if not 0 <= value < float("inf"):
            raise OptionError(f"{name}={value!r}", "0 for none, or a number above 0", f"Correct {name}")
    if mixup and "float" not in dtype:
        raise OptionError(
            f"mixup={mixup:g} for a network whose input is of the type {dtype}",
            "an input of floating-point numbers, which can be blended",
            "Begin the network with keras.Input(dtype='float32'), or leave out mixup",
        )
    if cutmix and len(row_shape) != 3:
        raise OptionError(
            f"cutmix={cutmix:g} for rows of the shape {row_shape}",
            "images",
            "Use mixup, which mixes any numbers",
        )


class Mixing:
    """MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899); to be traced.

    With both, each row draws which of them it is.

    Args:
        mixup: Alpha of the beta distribution that a row's share is drawn from; 0 for no MixUp.
        cutmix: The same of a rectangle's share of an image; 0 for no CutMix.

    Attributes:
        state: Of its seed generator.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        import keras

        self._mixup, self._cutmix = mixup, cutmix
        self._random, self._ops = keras.random, keras.ops
        self._generator = keras.random.SeedGenerator(0)
        self.state = self._generator.state

    def __call__(self, features: Any) -> tuple[Any, Any]:
        """Mixed features, and of each row the share that is its own, shape (rows,).

        Args:
            features: Shape (rows, ...), floating-point numbers; for CutMix (rows, height, width, channels).
        """
        ops = self._ops
        others, rows = ops.roll(features, 1, axis=0), (ops.shape(features)[0],)
        if not self._cutmix:
            return self._blended(features, others, rows)
        mixed, share = self._cut(features, others, rows)
        if self._mixup:
            is_cut = self._random.uniform(rows, dtype="float32", seed=self._generator) < 0.5
            blended, drawn = self._blended(features, others, rows)
            mixed = ops.where(ops.reshape(is_cut, (-1, 1, 1, 1)), mixed, blended)
            share = ops.where(is_cut, share, drawn)
        return mixed, share

    def _blended(self, features: Any, others: Any, rows: Any) -> tuple[Any, Any]:
        share = self._random.beta(rows, self._mixup, self._mixup, "float32", self._generator)
        each = self._ops.reshape(share, (-1, *[1] * (len(features.shape) - 1)))
        each = self._ops.cast(each, features.dtype)
        return each * features + (1 - each) * others, share

    def _cut(self, features: Any, others: Any, rows: Any) -> tuple[Any, Any]:
        ops, (height, width) = self._ops, features.shape[1:3]
        own = self._random.beta(rows, self._cutmix, self._cutmix, "float32", self._generator)
        half = ops.expand_dims(ops.sqrt(1 - own) / 2, 1)  # of a side, as a share of the image's
        of_rows, of_columns = (
            # Around a point anywhere in the image, at whose borders it ends.
            ops.abs((ops.arange(length, dtype=own.dtype) + 0.5) / length - ops.expand_dims(centre, 1)) < half
            for length, centre in (
                (length, self._random.uniform(rows, dtype="float32", seed=self._generator))
                for length in (height, width)
            )
        )
        inside = ops.expand_dims(of_rows, 2) & ops.expand_dims(of_columns, 1)
        share = 1 - ops.mean(ops.cast(inside, own.dtype), axis=(1, 2))
        return ops.where(ops.expand_dims(inside, 3), others, features), share
