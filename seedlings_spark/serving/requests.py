"""The JSON of TensorFlow Serving's REST API: what a request asks for, and what it is answered.

Rows (`instances`) or columns (`inputs`), of whole image files (`{"b64": ...}`) or of pixels.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import images
from seedlings_spark.errors import ImageError

BYTES, PIXELS = "image_bytes", "pixels"
# Of one request; the more would come one after the other anyway.
MOST_IMAGES = 256


class RefusedError(Exception):
    """A request that is not answered with a prediction.

    Args:
        status: Of HTTP.
        said: Why, in one line.
    """

    def __init__(self, status: int, said: str) -> None:
        super().__init__(status, said)
        self.status, self.said = status, said


@dataclass(frozen=True)
class Asked:
    """A request for predictions.

    Args:
        rows: For each image a whole file, or its pixels as lists.
        by_rows: Whether to answer in rows.
    """

    rows: Sequence[bytes | list[Any]]
    by_rows: bool


def read(body: bytes) -> Asked:
    """Read the body of a request.

    Raises:
        RefusedError: It is none.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"no JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict) or ("instances" in content) == ("inputs" in content):
        raise RefusedError(400, "expected a JSON object with either instances or inputs")
    by_rows = "instances" in content
    values = content["instances"] if by_rows else _of_name(content["inputs"])
    if not isinstance(values, list) or not values:
        raise RefusedError(400, f"{'instances' if by_rows else 'inputs'} is not a list of at least one image")
    if len(values) > MOST_IMAGES:
        raise RefusedError(413, f"{len(values)} images in one request; expected at most {MOST_IMAGES}")
    return Asked([_row(_of_name(each), place) for place, each in enumerate(values)], by_rows)


def pixels(asked: Asked, size: tuple[int, int], aspect: str, max_pixels: int) -> NDArray[np.uint8]:
    """The pixels of a request's images, shape (images, *size, 3).

    Raises:
        RefusedError: An image that is none, or that is too large; names its place in the request.
    """
    found = []
    for place, row in enumerate(asked.rows):
        if isinstance(row, bytes):
            try:
                found.append(images.decode(row, size, aspect=aspect, max_pixels=max_pixels))
            except ImageError as error:
                status = 413 if error.reason == "too_large" else 400
                raise RefusedError(status, f"image {place} is rejected: {error}") from None
        else:
            found.append(_as_pixels(row, size, place))
    return np.stack(found)


def answer(by_rows: bool, probabilities: NDArray[np.float32], classes: Sequence[str]) -> bytes:
    """The body of an answer: for each image its probabilities, and the names of the classes beside them.

    Raises:
        RefusedError: They are no numbers, which JSON cannot say.
    """
    if not np.isfinite(probabilities).all():
        raise RefusedError(500, "the network gives values that are not finite")
    rows = [[round(float(each), 8) for each in row] for row in probabilities]
    content: Mapping[str, Any]
    if by_rows:
        content = {"predictions": [{"probabilities": row, "classes": classes} for row in rows]}
    else:
        content = {"outputs": {"probabilities": rows, "classes": [classes] * len(rows)}}
    return json.dumps(content, ensure_ascii=False).encode()


def _of_name(value: object) -> object:
    """What stands under the name of an input, where it is named."""
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in (BYTES, PIXELS):
        return next(iter(value.values()))
    return value


def _row(value: object, place: int) -> bytes | list[Any]:
    if isinstance(value, list):
        return value
    coded = value.get("b64") if isinstance(value, dict) else None
    if not isinstance(coded, str):
        raise RefusedError(400, f'image {place} is neither {{"b64": "..."}} nor a list of pixels')
    try:
        return base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(400, f"image {place} is not in base64") from None


def _as_pixels(row: list[Any], size: tuple[int, int], place: int) -> NDArray[np.uint8]:
    expected = f"{size[0]} x {size[1]} pixels of 3 whole numbers from 0 to 255"
    # As Python's objects: an array of texts would have room for the longest in each of its places.
    values = np.array(row, object)
    numbers = values.ravel().tolist() if values.shape == (*size, 3) else []
    if not numbers or not all(type(each) is int and 0 <= each <= 255 for each in numbers):
        raise RefusedError(400, f"image {place} is not {expected}")
    return np.array(numbers, np.uint8).reshape(values.shape)
