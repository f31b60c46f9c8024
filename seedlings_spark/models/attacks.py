"""Pictures that are changed by little, on purpose, so that a network errs.

By the Adversarial Robustness Toolbox, an extra. Both attacks know the network's gradient and change no value by more
than a bound: FGSM (Goodfellow et al. 2015) at once, PGD (Madry et al. 2018) in ten steps that begin with the picture
itself, so that nothing is drawn. What comes of it is rounded to values that a picture can have.
"""

import importlib.util
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.cluster import runtime
from seedlings_spark.errors import OptionError
from seedlings_spark.images.corruptions import Kind
from seedlings_spark.models import saliency
from seedlings_spark.training import network as carried

_UNIT = "of 255 at most"
FGSM, PGD = (Kind(name, _UNIT, (1, 2, 4, 8, 16)) for name in ("FGSM", "PGD"))
KINDS = (FGSM, PGD)
_STEPS, _ROWS = 10, 32


def require() -> None:
    """Refuse attacks where there is nothing to make them with.

    Raises:
        OptionError: The package is not installed.
    """
    if importlib.util.find_spec("art") is None:
        raise OptionError(
            "--adversarial without the package adversarial-robustness-toolbox",
            "it here and on all executors",
            "Install it by: pip install 'seedlings-spark[robustness]'",
        )


class Attacker:
    """A network that is attacked.

    Args:
        task: The network.
    """

    def __init__(self, task: saliency.SaliencyTask) -> None:
        runtime.start(task.threads)
        import keras

        with warnings.catch_warnings(action="ignore"):  # it misses PyTorch
            from art.estimators.classification import TensorFlowV2Classifier
        network = carried.from_bytes(task.network, task.custom_objects)
        logits, gives_logits = saliency.logits_of(network)
        self._classifier = TensorFlowV2Classifier(
            model=keras.Model(network.inputs, logits),
            nb_classes=int(network.output_shape[-1]),
            input_shape=tuple(network.input_shape[1:]),
            loss_object=keras.losses.CategoricalCrossentropy(from_logits=gives_logits),
            clip_values=(0, 255),
        )

    def attacked(
        self, pixels: NDArray[np.uint8], classes: NDArray[np.integer], kind: Kind, strength: int
    ) -> NDArray[np.uint8]:
        """Pictures that are to be taken for something else.

        Args:
            pixels: Shape (pictures, height, width, 3).
            classes: Shape (pictures,): the place of each one's true class.
            kind: One of `KINDS`.
            strength: From 1.
        """
        bound = float(kind.levels[strength - 1])
        attack = self._attack(kind, bound)
        found = attack.generate(pixels.astype(np.float32), y=np.asarray(classes))
        values = np.rint(np.clip(found, pixels - bound, pixels + bound))
        return np.asarray(np.clip(values, 0, 255), np.uint8)

    def _attack(self, kind: Kind, bound: float) -> Any:
        from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentTensorFlowV2

        if kind == FGSM:
            return FastGradientMethod(self._classifier, eps=bound, batch_size=_ROWS)
        return ProjectedGradientDescentTensorFlowV2(
            self._classifier,
            eps=bound,
            eps_step=2.5 * bound / _STEPS,
            max_iter=_STEPS,
            num_random_init=0,
            batch_size=_ROWS,
            verbose=False,
        )
