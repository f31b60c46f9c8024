"""Perceptual hashes: pictures that look nearly the same have nearly the same bits.

The 256 lowest frequencies of a grey picture, each above their median or not (the pHash of the package ImageHash). Of
1,743 photographs of seedlings the bits of two that have nothing in common differ in 30 to 50 of 100; those of a picture
and the same one saved anew as JPEG, made larger or smaller, brighter or grey, in at most 4.
"""

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seedlings_spark.errors import ClusterError

# Bits on a side: frequencies of the picture.
_SIDE = 16
BITS = _SIDE * _SIDE


def require() -> None:
    """Refuse to go on without the package.

    Raises:
        ClusterError: It is not installed.
    """
    if find_spec("imagehash") is None:
        raise ClusterError(
            "near duplicates without the package ImageHash",
            "it, on the driver and on the executors",
            "Install it with pip install 'seedlings-spark[near-duplicates]' or leave out --near-duplicates",
        )


def perceptual_hash(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The bits of a picture.

    Args:
        pixels: (height, width, 3), RGB.

    Returns:
        `BITS` of them.
    """
    import imagehash

    bits: NDArray[np.bool_] = imagehash.phash(Image.fromarray(pixels), hash_size=_SIDE).hash.ravel()
    return bits
