"""What the learning curves say of overfitting and underfitting, in words, with the numbers that these rest on."""

import math
from collections.abc import Mapping, Sequence

# A validation loss that has moved by less than this share has not moved: epochs differ by as much by chance.
_NOTABLE = 0.05
# Below so many epochs curves show no direction.
_LEAST_EPOCHS = 3


def words(history: Mapping[str, Sequence[float | None]], kept_epoch: int | None) -> str:
    """A sentence or two, or "" where the history has too little to say anything.

    Args:
        history: Metric -> a value an epoch, as Keras gives it.
        kept_epoch: The epoch, from 1, whose weights were published; the last one without.
    """
    losses = [dict(_finite(history.get(name, ()))) for name in ("loss", "val_loss")]
    epochs = sorted(losses[0].keys() & losses[1].keys())
    if len(epochs) < _LEAST_EPOCHS:
        return ""
    training, validation = ([(epoch, of[epoch]) for epoch in epochs] for of in losses)
    best = min(validation, key=lambda each: each[1])
    last, first = validation[-1], validation[0]
    kept = next((each for each in validation if each[0] == kept_epoch), last)
    parts = [_direction(training, best, last)]
    if all(min(of.values()) > of[epochs[0]] * (1 - _NOTABLE) for of in losses):
        parts = [
            f"It has hardly learnt: the validation loss was {first[1]:.4g} after the first epoch and {best[1]:.4g} at"
            " its best. Try another learning rate, network or more pictures."
        ]
    if best[0] != last[0]:
        is_best = kept[0] == best[0]
        parts.append(
            f"The published weights are those of epoch {kept[0]}"
            + (", before that happened." if is_best else f", whose loss is {kept[1]:.4g}.")
        )
    if gap := _gap(history, kept[0]):
        parts.append(gap)
    return " ".join(filter(None, parts))


def _direction(
    training: Sequence[tuple[int, float]], best: tuple[int, float], last: tuple[int, float]
) -> str:
    of_training = dict(training)
    if last[1] > best[1] * (1 + _NOTABLE) and training[-1][1] < of_training[best[0]]:
        return (
            f"It overfits after epoch {best[0]}: the validation loss rose from {best[1]:.4g} to {last[1]:.4g} while the"
            f" training loss fell from {of_training[best[0]]:.4g} to {training[-1][1]:.4g}."
        )
    if best[0] == last[0]:
        return (
            f"It was still learning when it stopped: the validation loss is lowest, {last[1]:.4g}, in the last epoch,"
            f" {last[0]}. More epochs may help."
        )
    return (
        f"The validation loss has levelled off: {best[1]:.4g} in epoch {best[0]}, {last[1]:.4g} in the last epoch,"
        f" {last[0]}."
    )


def _gap(history: Mapping[str, Sequence[float | None]], epoch: int) -> str:
    """How the accuracies of training and validation pictures differ in an epoch."""
    training, validation = (dict(_finite(history.get(name, ()))) for name in ("accuracy", "val_accuracy"))
    if epoch not in training or epoch not in validation:
        return ""
    return (
        f"In epoch {epoch} the accuracy was {training[epoch]:.4f} on training pictures, as they came by with dropout"
        f" and augmentation, and {validation[epoch]:.4f} on validation pictures."
    )


def _finite(values: Sequence[float | None]) -> list[tuple[int, float]]:
    """Epochs, from 1, and their values, without those that are no number."""
    found = []
    for epoch, value in enumerate(values, start=1):
        if isinstance(value, int | float) and math.isfinite(value):
            found.append((epoch, float(value)))
    return found
