"""Column names and table layouts: the one place where a column is named.

A public function that returns a table ends in a `select` of one of these layouts, so that what is
written to disk never depends on how it was computed.
"""

from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
)

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
PROBABILITIES = "probabilities"
MODEL_VERSION = "model_version"
MODEL = "model"
TOP_SPECIES = "top_species"

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
    "conflicting_species",  # the same bytes under two species
)

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

PREDICTIONS = StructType(
    [
        StructField(PATH, StringType(), False),
        StructField(CONTENT_HASH, StringType(), False),
        StructField(PREDICTED_SPECIES, StringType(), False),
        StructField(CONFIDENCE, FloatType(), False),
        StructField(PROBABILITIES, ArrayType(FloatType(), False), False),
        StructField(MODEL_VERSION, StringType(), False),
    ]
)

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
