"""The metrics and pictures of a run as events, which TensorBoard shows while it trains.

A file of each epoch, in a folder for training and one for validation, so that TensorBoard draws both in one chart. An
epoch's file appears whole, on any file system, those that cannot append too; an epoch that is trained again after a
crash replaces its file, and so is there once. TensorBoard itself is not needed to write them.
"""

import struct
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from seedlings_spark import files

TRAINING, VALIDATION = "train", "validation"
_VALIDATION = "val_"
# TensorBoard goes by the word in the middle, and reads the files of a folder by their names' order.
_FILE = "events.out.tfevents.epoch-"
# How a file of events says what it is.
_FILE_VERSION = "brain.Event:2"


def write(
    folder: str, epoch: int, metrics: Mapping[str, float], pictures: Mapping[str, bytes] | None = None
) -> None:
    """Write the events of an epoch.

    Args:
        folder: For all epochs of the run, on any file system.
        epoch: From 1.
        metrics: By name; those of validation begin with `val_`.
        pictures: Of validation, as PNGs by name.
    """
    of_validation = {
        name.removeprefix(_VALIDATION): value
        for name, value in metrics.items()
        if name.startswith(_VALIDATION)
    }
    of_training = {name: value for name, value in metrics.items() if not name.startswith(_VALIDATION)}
    with tempfile.TemporaryDirectory(prefix="seedlings-events-") as temporary:
        for part, values, shown in (
            (TRAINING, of_training, {}),
            (VALIDATION, of_validation, pictures or {}),
        ):
            if values or shown:
                local = Path(temporary) / part
                _write_local(local, epoch, values, shown)
                files.put(local, files.join(folder, part, f"{_FILE}{epoch:06d}"))


def with_picture(folder: str, name: str) -> dict[int, str]:
    """The files of validation, by their epochs, that hold a picture of this name.

    Args:
        folder: As for `write`.
        name: Of the picture.
    """
    place = files.join(folder, VALIDATION)
    names = files.list_names(place) if files.is_directory(place) else []
    found = {
        int(each.removeprefix(_FILE)): files.join(place, each) for each in names if each.startswith(_FILE)
    }
    return {epoch: file for epoch, file in sorted(found.items()) if name.encode() in files.read_bytes(file)}


def _write_local(file: Path, epoch: int, values: Mapping[str, float], pictures: Mapping[str, bytes]) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    shown = [v1.Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
    for name, content in pictures.items():
        image = v1.Summary.Image(encoded_image_string=content, **_size(content))
        shown.append(v1.Summary.Value(tag=name, image=image))
    now = time.time()
    with tf.io.TFRecordWriter(str(file)) as records:
        records.write(v1.Event(wall_time=now, file_version=_FILE_VERSION).SerializeToString())
        event = v1.Event(wall_time=now, step=epoch, summary=v1.Summary(value=shown))
        records.write(event.SerializeToString())


def _size(content: bytes) -> dict[str, int]:
    """Width and height of a PNG: the first numbers of its first chunk."""
    width, height = struct.unpack(">II", content[16:24])
    return {"width": width, "height": height}
