"""From a store to an export: which version, and the images that it is compared with Keras on."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from seedlings_spark import choices, corpus, exports, files, fingerprint, images, schema
from seedlings_spark.config import ModelsOptions
from seedlings_spark.errors import CorpusError, ImageError, InputError
from seedlings_spark.models.store import CURRENT, ModelStore, ModelVersion

# Images that are compared, and the bytes of their pixels, by the driver.
_IMAGES, _BYTES = 512, 64 * 1024 * 1024


def export(store: ModelStore, options: ModelsOptions) -> str:
    """Export a version; says what was made and how it compares with Keras.

    Args:
        store: Where the version is.
        options: Those of the job `models`.

    Raises:
        CorpusError: The corpus has images of another size, or none in its test split.
        InputError: There are no images that can be decoded.
        SeedlingsError: As `exports.export` says.
    """
    version = store.verify(options.model_version or CURRENT)
    samples = None
    if options.corpus:
        samples = _of_corpus(version, options.corpus)
    elif options.images:
        samples = _of_images(version, options.images)
    made = exports.export(
        version,
        options.format,
        options.output,
        samples=samples,
        tolerance=options.tolerance,
        runtime_folder=options.web_runtime,
    )
    return f"{version.name} {version.version} as {options.format} is in {made.output}: {made.told}"


def _most(version: ModelVersion) -> int:
    return max(1, min(_IMAGES, _BYTES // (math.prod(version.image_size) * 3)))


def _of_corpus(version: ModelVersion, path: str) -> exports.Samples:
    prepared = corpus.load(path).require_one_species("models export")
    if prepared.image_size != version.image_size:
        found, expected = ("x".join(map(str, size)) for size in (prepared.image_size, version.image_size))
        raise CorpusError(
            f"{path} with images of {found} pixels for {version.name} {version.version}",
            f"images of {expected}, as that model takes",
            "Give another --corpus, or a folder of --images",
        )
    pixels, names = _some(prepared, schema.TEST, version)
    if not names:
        raise CorpusError(
            f"no image in the test split of {path}", "at least one", "Give a folder of --images"
        )
    places = {name: place for place, name in enumerate(version.classes)}
    training = _some(prepared, schema.TRAIN, version)[0] if version.has_int8 else pixels[:0]
    return exports.Samples(
        pixels,
        f"{len(names):,} images of the test split of a corpus with fingerprint {prepared.fingerprint}",
        np.array([places.get(name, -1) for name in names]),
        training if len(training) else None,
    )


def _some(prepared: corpus.Corpus, split: str, version: ModelVersion) -> tuple[NDArray[np.uint8], list[str]]:
    """Images of a split, shape (images, height, width, 3), and their species."""
    table = prepared.images(SparkSession.active(), split)
    chosen = table.orderBy(schema.CONTENT_HASH).limit(_most(version))
    rows = chosen.select(schema.IMAGE, schema.SPECIES).collect()
    pixels = np.frombuffer(b"".join(bytes(row[0]) for row in rows), np.uint8)
    return pixels.reshape(-1, *version.image_size, 3), [row[1] for row in rows]


def _of_images(version: ModelVersion, path: str) -> exports.Samples:
    decoded = []
    for content in _contents(path):
        try:
            pixels = images.decode(content, version.image_size, aspect=version.aspect)
        except ImageError:
            continue
        decoded.append(pixels)
        if len(decoded) == _most(version):
            break
    if not decoded:
        raise InputError(
            f"no image below {path} that can be decoded",
            f"files of {', '.join(choices.FORMATS)}",
            "Check --images",
        )
    return exports.Samples(np.stack(decoded), f"{len(decoded):,} images that were given")


def _contents(path: str) -> Iterator[bytes]:
    try:
        # Of no order of theirs: a folder has one folder a species.
        found = sorted(
            files.walk(path),
            key=lambda status: fingerprint.content_hash(status.path.encode("utf-8", "surrogateescape")),
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"no folder {path}", "a folder of images", "Check --images") from error
    for status in found:
        if status.error is None and 0 < status.length <= choices.MAX_BYTES:
            yield files.read_bytes(status.path)
