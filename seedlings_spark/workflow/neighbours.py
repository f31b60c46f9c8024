"""The pictures of a table of features that are most like one picture: exact, by cosine similarity.

Each task goes through its rows block by block and keeps the nearest of them; the driver keeps the nearest of all
tasks'. The vector of the picture is that of its row, or is computed by the network that the table is of.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import config, display, files, fingerprint, images, schema
from seedlings_spark.config import SimilarOptions
from seedlings_spark.corpus import tables
from seedlings_spark.errors import CorpusError, ImageError, InputError, NetworkError

# Rows whose similarities are computed at once.
_BLOCK = 1_024
# In a folder that `featurize` has made.
_FEATURES, _MANIFEST = "features", "manifest.json"


@dataclass(frozen=True)
class Similar:
    """What `similar` has found.

    Args:
        to: The picture that others were compared with.
        rows: Rows of `schema.SIMILAR` as mappings, the most similar first.
        output: Folder of the table; "" if none was asked for.
    """

    to: str
    rows: Sequence[Mapping[str, Any]]
    output: str = ""

    def table(self) -> str:
        """The rows for a person to read."""
        cells = [
            [f"{row[schema.SIMILARITY]:.4f}", row[schema.SPECIES] or "", display.Whole(row[schema.PATH])]
            for row in self.rows
        ]
        return display.aligned([[schema.SIMILARITY, schema.SPECIES, schema.PATH], *cells], "><<")


def similar(spark: SparkSession, options: SimilarOptions) -> Similar:
    """Find the pictures whose features have the smallest angle to those of one picture.

    Args:
        spark: The session.
        options: Those of the job `similar`.

    Raises:
        CorpusError: The output is there already.
        InputError: No features, or no picture.
        NetworkError: The network that the features are of is not what it was.
        StoreError: Its version is gone, or not as it was published.
    """
    options = config.qualified(options)
    if options.output and files.exists(options.output):
        raise CorpusError(options.output, "a new folder", "Give another --output, or delete it")
    manifest = _manifest(options.features)
    table = tables.parquet(spark, files.join(options.features, _FEATURES), schema.FEATURIZED)
    content = files.read_bytes(options.to) if files.exists(options.to) else None
    if content is None:
        is_same = F.col(schema.PATH) == options.to
    else:  # of a file that has changed since, the row is another picture's
        is_same = F.col(schema.CONTENT_HASH) == fingerprint.content_hash(content)
    known = table.where(is_same).select(schema.FEATURES).first()
    if known is not None:
        vector = np.asarray(known[0], np.float64)
    elif content is not None:
        vector = _computed(options, manifest, content)
    else:
        raise InputError(
            f"{options.to}, which is neither a file nor a path in {options.features}",
            "a picture",
            "Correct --to",
        )
    others = table.where(F.col(schema.PATH) != options.to)
    nearest = others.mapInArrow(partial(nearest_of, _of_length_1(vector), options.top), schema.SIMILAR)
    found = _best(nearest.toArrow(), options.top)
    if options.output:
        made = spark.createDataFrame(found, schema.SIMILAR).coalesce(1)
        made.write.options(**tables.write_options(options.output)).parquet(options.output)
    return Similar(options.to, found.to_pylist(), options.output)


def nearest_of(
    vector: NDArray[np.float64], top: int, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """The function of a Spark task: of rows of `schema.FEATURIZED` the nearest ones, as `schema.SIMILAR`.

    Args:
        vector: Of length 1, shape (features,).
        top: How many.
        batches: The rows.
    """
    kept = pa.Table.from_batches([], tables.arrow_schema(schema.SIMILAR))
    for batch in batches:
        for start in range(0, batch.num_rows, _BLOCK):
            block = batch.slice(start, _BLOCK)
            features = block.column(schema.FEATURES)
            rows = features.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
            rows = rows.reshape(len(features), len(vector))
            lengths = np.linalg.norm(rows, axis=1)
            # No direction is near to zeros. In float32 it does not show which rows were computed together.
            cosines = (rows @ vector / np.where(lengths > 0, lengths, 1)).astype(np.float32)
            columns = {name: block.column(name) for name in schema.SIMILAR.names if name != schema.SIMILARITY}
            columns[schema.SIMILARITY] = pa.array(cosines)
            found = pa.table({name: columns[name] for name in schema.SIMILAR.names}, schema=kept.schema)
            kept = _best(pa.concat_tables([kept, found]), top)
    yield from kept.combine_chunks().to_batches()


def _best(rows: pa.Table, top: int) -> pa.Table:
    """The most similar ones, of equal ones the first by their paths."""
    order = [(schema.SIMILARITY, "descending"), (schema.PATH, "ascending")]
    return rows.sort_by(order).slice(0, top)


def _of_length_1(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def _manifest(folder: str) -> dict[str, Any]:
    path, why = files.join(folder, _MANIFEST), "is that of something else"
    try:
        found = json.loads(files.read_text(path))
    except (OSError, ValueError) as error:
        found, why = None, f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if not isinstance(found, dict) or "network_sha256" not in found:
        raise InputError(f"{path}, which {why}", "a folder that featurize has made", "Check --features")
    return found


def _computed(options: SimilarOptions, manifest: Mapping[str, Any], content: bytes) -> NDArray[np.float64]:
    """The vector of a picture that is not in the table."""
    from seedlings_spark.workflow import featurizing

    size = (manifest["image_size"][0], manifest["image_size"][1])
    try:
        pixels = images.decode(content, size, aspect=manifest["aspect"])
    except ImageError as error:
        raise InputError(
            f"{options.to}, which cannot be read ({error})", "a picture", "Give another --to"
        ) from None
    network = featurizing.network_of(manifest, options.require_signature)
    if featurizing.digest(network) != manifest["network_sha256"]:
        raise NetworkError(
            f"{manifest['network']}, which has other weights than when {options.features} was made",
            "the same: features of two networks cannot be compared",
            "Call featurize again, with another --output, or give a picture of the table",
        )
    vector: NDArray[np.float64] = np.asarray(network(pixels[None].astype(np.float32)), np.float64)[0]
    return vector
