"""Column names and table layouts: the one place where a column is named.

A public function that returns a table ends in a `select` of one of these layouts, so that what is
written to disk never depends on how it was computed.
"""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    ByteType,
    DataType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    ShortType,
    StringType,
    StructField,
    StructType,
)

from seedlings_spark.kinds import Kind

PATH = "path"
LENGTH = "length"
MODIFIED = "modified"
CONTENT = "content"
CONTENT_HASH = "content_hash"
SPECIES = "species"
SPLIT = "split"
HEIGHT = "height"
WIDTH = "width"
IMAGE = "image"
LABEL = "label"
REASON = "reason"
STAGE = "stage"
DETAIL = "detail"
PREDICTION = "prediction"
PROBABILITY = "probability"
PREDICTED_SPECIES = "predicted_species"
CONFIDENCE = "confidence"
VALUE = "value"
PREDICTED_VALUE = "predicted_value"
PROBABILITIES = "probabilities"
FEATURES = "features"
MODEL_VERSION = "model_version"
MODEL = "model"
TOP_SPECIES = "top_species"
SPECIES_SET = "species_set"
CURRENT_SPECIES = "current_species"
SHADOW_SPECIES = "shadow_species"
SHADOW_CONFIDENCE = "shadow_confidence"
SHADOW_PROBABILITIES = "shadow_probabilities"
FOLD = "fold"
SIMILARITY = "similarity"

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)

# Where a file was lost ...
STAGES = ("list", "read", "decode", "label", "predict")
# ... and why. A fixed vocabulary, so that rejects can be counted and alarmed on.
REJECT_REASONS = (
    "empty",  # zero bytes
    "truncated",  # a picture that ends too early
    "not_an_image",  # nothing that Pillow recognises
    "unsupported_format",  # a picture, but not of an accepted format
    "too_large",  # more pixels or bytes than allowed
    "corrupt",  # recognised, but damaged
    "unreadable",  # the file system gave an error
    "changed",  # other bytes than when it was listed
    "hidden",  # a folder or a file of a program's or of the system's own, with all that is in it
    "no_species",  # a training image outside of any species' folder
    "no_number",  # a training image whose number is missing, no number, or not finite
    "conflicting_species",  # the same bytes under two species, or numbers
    "dropped",  # a person has said so, in a table of fixes
    "leak",  # the same bytes, near duplicates or pictures of one group are in a split that is measured on
)

# Why a prediction names no species.
UNKNOWN = "unknown"

# Between the names in a corpus' column `species`, where pictures show any number of them, each name once, in order.
# Alone it says that a picture shows none of them: null would be a picture of which nobody has said anything.
BETWEEN_SPECIES = "|"

# Networks answer in float32.
_LARGEST_FLOAT = 3.4028234663852886e38

# In the metadata of our column of content hashes: another's column may have the same name, and be anything.
_OURS = {"seedlings_spark": "sha256 of the bytes of a picture's file"}

LISTING = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(LENGTH, LongType(), False),  # bytes; -1 where it is not known
        StructField(MODIFIED, LongType(), False),  # ms since 1970 UTC, or a hash of the bytes; -1: not known
        StructField(SPECIES, StringType(), True),
        StructField(DETAIL, StringType(), True),  # why it cannot be read, where the listing knows it already
    ]
)

# What reading and decoding make of one listed file: an image, or a reason.
DECODED = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(SPECIES, StringType(), True),
        StructField(CONTENT_HASH, StringType(), True),
        StructField(LENGTH, LongType(), True),
        StructField(IMAGE, BinaryType(), True),
        StructField(REASON, StringType(), True),
        StructField(STAGE, StringType(), True),
        StructField(DETAIL, StringType(), True),
    ]
)

CORPUS = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(CONTENT_HASH, StringType(), False),
        StructField(SPECIES, StringType(), False),
        StructField(SPLIT, StringType(), False),
        StructField(HEIGHT, IntegerType(), False),
        StructField(WIDTH, IntegerType(), False),
        StructField(LENGTH, LongType(), True),  # of the file in bytes; null where an earlier release wrote it
        StructField(IMAGE, BinaryType(), False),
    ]
)

REJECTS = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(CONTENT_HASH, StringType(), True),
        StructField(REASON, StringType(), False),
        StructField(STAGE, StringType(), False),
        StructField(DETAIL, StringType(), True),
    ]
)

# Two pictures that are nearly the same, and how many bits of their perceptual hashes differ.
NEAR_DUPLICATES = StructType(
    [
        StructField("distance", IntegerType(), False),
        *(
            StructField(f"{side}_{name}", StringType(), False)
            for side in ("first", "second")
            for name in (PATH, SPECIES, SPLIT)
        ),
    ]
)

PREDICTIONS = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(CONTENT_HASH, StringType(), False),
        StructField(PREDICTED_SPECIES, StringType(), True),  # null of an image that is called unknown
        StructField(CONFIDENCE, FloatType(), False),
        StructField(PROBABILITIES, ArrayType(FloatType(), False), False),
        StructField(MODEL_VERSION, StringType(), False),
    ]
)

# A picture of which two versions say different things: what the second one, the shadow, says is in the last columns.
SHADOWED = StructType(
    [
        *PREDICTIONS.fields[:-1],
        StructField(SHADOW_SPECIES, StringType(), True),
        StructField(SHADOW_CONFIDENCE, FloatType(), False),
        StructField(SHADOW_PROBABILITIES, ArrayType(FloatType(), False), False),
    ]
)

# A picture of a split that a version was evaluated on.
FEATURIZED = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(CONTENT_HASH, StringType(), False),
        StructField(SPECIES, StringType(), True),  # null of files that are in no corpus
        StructField(SPLIT, StringType(), True),  # the same
        StructField(FEATURES, ArrayType(FloatType()), False),
    ]
)

# How much the features of such an image are like those of another one: the cosine of the angle between them.
SIMILAR = StructType(
    [
        StructField(SIMILARITY, FloatType(), False),
        *FEATURIZED.fields[:-1],
    ]
)

EVALUATED = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(CONTENT_HASH, StringType(), False),
        StructField(SPECIES, StringType(), False),  # the true one
        StructField(PREDICTED_SPECIES, StringType(), True),
        StructField(CONFIDENCE, FloatType(), True),
        StructField(PROBABILITIES, ArrayType(FloatType(), True), True),  # null of a pipeline that gives none
        StructField(
            CURRENT_SPECIES, StringType(), True
        ),  # the current version's prediction, if it is compared with
    ]
)

# The same of a network that has not seen the image, and the fold that it was held out with.
OUT_OF_FOLD = StructType([*EVALUATED.fields[:-1], StructField(FOLD, IntegerType(), False)])

_SPECIES_LISTS = ArrayType(StringType(), False)


def _with_lists(layout: StructType, without: str = "") -> StructType:
    """The same table of pictures that show any number of species."""
    names = (SPECIES, PREDICTED_SPECIES)
    return StructType(
        [
            StructField(field.name, _SPECIES_LISTS, field.nullable) if field.name in names else field
            for field in layout
            if field.name != without
        ]
    )


PREDICTIONS_OF_LISTS = _with_lists(PREDICTIONS)
EVALUATED_LISTS = _with_lists(EVALUATED, CURRENT_SPECIES)

# The same of pictures that have a number each, in the unit of their labels.
PREDICTIONS_OF_NUMBERS = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(CONTENT_HASH, StringType(), False),
        StructField(PREDICTED_VALUE, FloatType(), False),
        StructField(MODEL_VERSION, StringType(), False),
    ]
)
EVALUATED_NUMBERS = StructType(
    [
        *PREDICTIONS_OF_NUMBERS.fields[:2],
        StructField(VALUE, DoubleType(), False),  # the true one
        PREDICTIONS_OF_NUMBERS[PREDICTED_VALUE],
    ]
)
PREDICTIONS_OF = {
    Kind.CLASSIFICATION: PREDICTIONS,
    Kind.MULTILABEL: PREDICTIONS_OF_LISTS,
    Kind.REGRESSION: PREDICTIONS_OF_NUMBERS,
}


def prediction_of(kind: Kind) -> str:
    """The column of what a version says."""
    return PREDICTED_VALUE if kind == Kind.REGRESSION else PREDICTED_SPECIES


def kind_of(predictions: DataFrame) -> Kind:
    """What a version says of which a table has predictions."""
    if PREDICTED_VALUE in predictions.columns:
        return Kind.REGRESSION
    has_lists = isinstance(predictions.schema[PREDICTED_SPECIES].dataType, ArrayType)
    return Kind.MULTILABEL if has_lists else Kind.CLASSIFICATION


# What a scoring run has made of a file, for later runs: which file it was, by whom it was scored, or why not.
LEDGER = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(LENGTH, LongType(), False),
        StructField(MODIFIED, LongType(), False),
        StructField(MODEL, StringType(), False),
        StructField(REASON, StringType(), True),
    ]
)


def quoted(name: str) -> str:
    """A column's name as Spark's SQL takes it, whatever is in it: a dot would mean a field of a struct."""
    return "`" + name.replace("`", "``") + "`"


def species_in(text: Column) -> Column:
    """The names in a column `species` of a corpus whose pictures show any number of them, as an array."""
    return F.filter(F.split(text, "[|]"), lambda name: name != "")


def as_text(names: Column) -> Column:
    """The counterpart: names in an array, each once and in order, as one text."""
    text = F.when(F.size(names) == 0, F.lit(BETWEEN_SPECIES)).otherwise(F.concat_ws(BETWEEN_SPECIES, names))
    return F.when(names.isNotNull(), text)


def number_in(text: Column) -> Column:
    """The number in a column `species` of a corpus whose pictures have one each; null where a float cannot hold it."""
    number = text.try_cast("double")
    return F.when(F.abs(number) <= F.lit(_LARGEST_FLOAT), number)


def column(name: str) -> Column:
    """The column of a table that has exactly this name."""
    return F.col(quoted(name))


# Types of numbers that hold all values of those before them, and that Spark reads from files of these.
_WIDER: tuple[tuple[type[DataType], ...], ...] = (
    (ByteType, ShortType, IntegerType, LongType),
    (ByteType, ShortType, IntegerType, DoubleType),
    (FloatType, DoubleType),
)
WIDER = (
    "the same type; or tinyint, smallint, int, bigint in any order, one of the first three beside double, float"
    " beside double, decimals of other sizes, structs with other fields"
)


def widened(one: DataType, other: DataType) -> DataType | None:
    """The type that files of two types can be read with so that no value changes; None if there is none.

    It is one of numbers that hold all values of both, and for structs one with the fields of both, also where these
    are in arrays and maps. Names of fields are the same whatever their case, as for Spark. `WIDER` says it in words.
    """
    if isinstance(one, StructType) and isinstance(other, StructType):
        fields = {field.name.lower(): field for field in one}
        for field in other:
            key = field.name.lower()
            before = fields.get(key, field)
            kind = widened(before.dataType, field.dataType)
            if kind is None:
                return None
            fields[key] = StructField(before.name, kind)
        return StructType([StructField(field.name, field.dataType) for field in fields.values()])
    if isinstance(one, ArrayType) and isinstance(other, ArrayType):
        kind = widened(one.elementType, other.elementType)
        return None if kind is None else ArrayType(kind)
    if isinstance(one, MapType) and isinstance(other, MapType):
        kind = widened(one.valueType, other.valueType)
        return None if kind is None or one.keyType != other.keyType else MapType(one.keyType, kind)
    if isinstance(one, DecimalType) and isinstance(other, DecimalType):
        scale = max(one.scale, other.scale)
        precision = scale + max(one.precision - one.scale, other.precision - other.scale)
        return DecimalType(precision, scale) if precision <= 38 else None
    for chain in _WIDER:
        if isinstance(one, chain) and isinstance(other, chain):
            return max(one, other, key=lambda kind: chain.index(type(kind)))
    return one if one == other else None


def with_content_hash(table: DataFrame) -> DataFrame:
    """The table with the mark on its column `content_hash` that it is ours: a SHA-256 of each row's content."""
    return table.withMetadata(CONTENT_HASH, _OURS)


def has_content_hash(table: DataFrame) -> bool:
    """Whether the table has a column `content_hash` that is ours, and not one of a user's that is called so."""
    return any(field.name == CONTENT_HASH and field.metadata == _OURS for field in table.schema.fields)
