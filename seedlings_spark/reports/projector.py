"""Pictures as points: what the layer before the last gives, for TensorBoard's projector, and in two dimensions.

The map has the first two principal components, which NumPy computes of at most `MOST_IMAGES` vectors: it shows what
lies far apart, and says how much of the variance it shows. TensorBoard's projector turns the same vectors by t-SNE and
UMAP.
"""

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame

from seedlings_spark import display, files, images, schema

FOLDER = "projector"
VECTORS, METADATA, SPRITE, CONFIG = "vectors.tsv", "metadata.tsv", "sprite.png", "projector_config.pbtxt"
# As many as a browser turns without stuttering.
MOST_IMAGES = 2_000
# Height and width of a picture in the sprite, and in the one that the page carries inside.
_TILE, _SMALL = 64, 48
_CONFIG = f"""\
embeddings {{
  tensor_name: "features"
  tensor_path: "{VECTORS}"
  metadata_path: "{METADATA}"
  sprite {{
    image_path: "{SPRITE}"
    single_image_dim: {_TILE}
    single_image_dim: {_TILE}
  }}
}}
"""


@dataclass(frozen=True)
class Point:
    """A picture.

    Attributes:
        path: Of its file.
        content_hash: Of its bytes.
        truth: Its species.
        predicted: The one that it is taken for.
        confidence: The probability of that; None where the pipeline gives none.
    """

    path: str
    content_hash: str
    truth: str
    predicted: str
    confidence: float | None


@dataclass(frozen=True)
class Projection:
    """Pictures and where they lie.

    Attributes:
        points: In the order of their content hashes.
        vectors: float32 of shape (points, features).
        tiles: Of each picture a JPEG.
        places: float64 of shape (points, 2): its first two principal components.
        shares: Of the variance, that these two have.
    """

    points: tuple[Point, ...]
    vectors: npt.NDArray[np.float32]
    tiles: tuple[bytes, ...]
    places: npt.NDArray[np.float64]
    shares: tuple[float, float]

    @property
    def columns(self) -> int:
        """Of the sprite, which has as many rows."""
        return math.ceil(math.sqrt(len(self.points)))

    def sprite(self, tile: int) -> images.Pixels:
        """All pictures in one, row by row, each of the same height and width."""
        sheet = np.zeros((self.columns, tile, self.columns, tile, 3), np.uint8)
        for place, content in enumerate(self.tiles):
            row, column = divmod(place, self.columns)
            sheet[row, :, column] = images.decode(content, (tile, tile), aspect="pad")
        return sheet.reshape(self.columns * tile, self.columns * tile, 3)

    def to_page(self, classes: Sequence[str]) -> dict[str, object]:
        """What the page's script draws: numbers, names that can be shown, and the sprite as a JPEG."""
        sprite = self.sprite(_SMALL)
        numbers = {name: place for place, name in enumerate(classes)}
        return {
            "tile": _SMALL,
            "columns": self.columns,
            "shares": list(self.shares),
            "sprite": "data:image/jpeg;base64,"
            + base64.b64encode(images.thumbnail(sprite, len(sprite))).decode(),
            "points": [
                [
                    *(round(float(value), 6) for value in place),
                    numbers[each.truth],
                    numbers[each.predicted],
                    None if each.confidence is None else round(each.confidence, 3),
                    display.shown(each.path),
                ]
                for each, place in zip(self.points, self.places, strict=True)
            ],
        }


def principal(
    vectors: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """The first two principal components, and the shares of the variance that they have.

    Args:
        vectors: Shape (points, features).

    Returns:
        Shape (points, 2), 0 where there is no such component; of each the largest coefficient is positive.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    whole = float((singular**2).sum())
    places, shares = np.zeros((len(vectors), 2)), [0.0, 0.0]
    for number, (value, direction) in enumerate(zip(singular[:2], directions[:2], strict=True)):
        sign = np.sign(direction[np.abs(direction).argmax()])
        places[:, number] = centred @ direction * (sign or 1)
        shares[number] = float(value**2) / whole if whole else 0.0
    return places, (shares[0], shares[1])


def projection(points: Sequence[Point], featurized: DataFrame) -> Projection:
    """Gather vectors and tiles of pictures, which executors compute.

    Args:
        points: At most `MOST_IMAGES`.
        featurized: The same pictures, as `schema.CORPUS`, with the column `schema.FEATURES`.
    """
    columns = (schema.CONTENT_HASH, schema.HEIGHT, schema.WIDTH, schema.IMAGE, schema.FEATURES)
    layout = f"{schema.CONTENT_HASH} string, {schema.FEATURES} array<float>, tile binary"
    table = featurized.select(*columns).mapInArrow(_tiled, layout).toArrow()
    rows = {
        name: (vector, tile)
        for name, vector, tile in zip(
            table[schema.CONTENT_HASH].to_pylist(),
            np.asarray(table[schema.FEATURES].combine_chunks().flatten()).reshape(table.num_rows, -1),
            table["tile"].to_pylist(),
            strict=True,
        )
    }
    ordered = sorted(points, key=lambda each: each.content_hash)
    vectors = np.stack([rows[each.content_hash][0] for each in ordered])
    tiles = tuple(rows[each.content_hash][1] for each in ordered)
    return Projection(tuple(ordered), vectors, tiles, *principal(vectors))


def _tiled(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        tiles = [
            images.thumbnail(
                np.frombuffer(pixels.as_py(), np.uint8).reshape(height.as_py(), width.as_py(), 3), _TILE
            )
            for height, width, pixels in zip(*batch.columns[1:4], strict=True)
        ]
        vectors = batch.column(4).cast(pa.list_(pa.float32()))
        yield pa.RecordBatch.from_arrays(
            [batch.column(0), vectors, pa.array(tiles, pa.binary())],
            [schema.CONTENT_HASH, schema.FEATURES, "tile"],
        )


def write(folder: str, found: Projection) -> None:
    """Write what TensorBoard's projector reads, its config last.

    Args:
        folder: Where to; made if need be.
        found: What to write.
    """
    metadata = [(schema.SPECIES, schema.PREDICTED_SPECIES, schema.CONFIDENCE, schema.PATH)]
    for each in found.points:
        confidence = "" if each.confidence is None else f"{each.confidence:.4f}"
        truth, predicted, path = map(display.shown, (each.truth, each.predicted, each.path))
        metadata.append((truth, predicted, confidence, path))
    texts: Mapping[str, Iterable[Iterable[str]]] = {
        VECTORS: ([f"{value:.6g}" for value in vector] for vector in found.vectors),
        METADATA: metadata,
    }
    files.make_directory(folder)
    files.delete(files.join(folder, CONFIG))
    for name, rows in texts.items():
        files.write_text(files.join(folder, name), "".join("\t".join(row) + "\n" for row in rows))
    files.write_bytes(files.join(folder, SPRITE), images.compressed_png(found.sprite(_TILE)))
    files.write_text(files.join(folder, CONFIG), _CONFIG)
