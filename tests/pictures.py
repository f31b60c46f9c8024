"""Pictures for tests, and where they are written."""

from pathlib import Path

import numpy as np

from seedlings_spark import images


def png(number: int, height: int = 10, width: int = 10) -> bytes:
    """A picture of its own for every number, as a PNG file; one of 10 x 10 has 400 bytes."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    return images.encode_png(pixels)


def write(root: Path, path: str, content: bytes) -> Path:
    """Write a file below a folder, and the folders that it is in."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target
