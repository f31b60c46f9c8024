"""Which stages a saved pipeline may have, and which params each of them.

Spark makes the classes that a pipeline's files name, and gives them the params that stand there: with
`SQLTransformer` such a file reads, overwrites and runs what it likes. A model version from elsewhere is data, not
code, so the files are compared with what stands here before Spark sees them: exact classes, which neither read nor
write nor run anything, their own params with the types that these have, and the files that Spark itself writes of such
a stage, and no others.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.ml.param import Params

from seedlings_spark import display, files
from seedlings_spark.errors import StoreError

# Of one stage's metadata; the history of a long training is some kB.
_MOST_BYTES = 64 * 1024 * 1024
_PIPELINES = ("pyspark.ml.pipeline.PipelineModel", "org.apache.spark.ml.PipelineModel")
_FEATURE = "org.apache.spark.ml.feature."
# Spark ML's own stages, with their params. Not here: what runs SQL (SQLTransformer), a formula over columns
# (RFormulaModel), whole estimators (CrossValidatorModel, OneVsRestModel), and everything of `pyspark.ml.connect`.
SPARK_STAGES = {
    name: params.split()
    for name, params in {
        "Binarizer": "inputCol inputCols outputCol outputCols threshold thresholds",
        "Bucketizer": "handleInvalid inputCol inputCols outputCol outputCols splits splitsArray",
        "ChiSqSelectorModel": "fdr featuresCol fpr fwe labelCol numTopFeatures outputCol percentile selectorType",
        "CountVectorizerModel": "binary inputCol maxDF minDF minTF outputCol vocabSize",
        "DCT": "inputCol inverse outputCol",
        "ElementwiseProduct": "inputCol outputCol scalingVec",
        "FeatureHasher": "categoricalCols inputCols numFeatures outputCol",
        "HashingTF": "binary inputCol numFeatures outputCol",
        "IDFModel": "inputCol minDocFreq outputCol",
        "ImputerModel": "inputCol inputCols missingValue outputCol outputCols relativeError strategy",
        "IndexToString": "inputCol labels outputCol",
        "Interaction": "inputCols outputCol",
        "MaxAbsScalerModel": "inputCol outputCol",
        "MinMaxScalerModel": "inputCol max min outputCol",
        "NGram": "inputCol n outputCol",
        "Normalizer": "inputCol outputCol p",
        "OneHotEncoderModel": "dropLast handleInvalid inputCol inputCols outputCol outputCols",
        "PCAModel": "inputCol k outputCol",
        "PolynomialExpansion": "degree inputCol outputCol",
        "RegexTokenizer": "gaps inputCol minTokenLength outputCol pattern toLowercase",
        "RobustScalerModel": "inputCol lower outputCol relativeError upper withCentering withScaling",
        "StandardScalerModel": "inputCol outputCol withMean withStd",
        "StopWordsRemover": "caseSensitive inputCol inputCols locale outputCol outputCols stopWords",
        "StringIndexerModel": "handleInvalid inputCol inputCols outputCol outputCols stringOrderType",
        "TargetEncoderModel": (
            "handleInvalid inputCol inputCols labelCol outputCol outputCols smoothing targetType"
        ),
        "Tokenizer": "inputCol outputCol",
        "UnivariateFeatureSelectorModel": (
            "featureType featuresCol labelCol labelType outputCol selectionMode selectionThreshold"
        ),
        "VarianceThresholdSelectorModel": "featuresCol outputCol varianceThreshold",
        "VectorAssembler": "handleInvalid inputCols outputCol",
        "VectorIndexerModel": "handleInvalid inputCol maxCategories outputCol",
        "VectorSizeHint": "handleInvalid inputCol size",
        "VectorSlicer": "indices inputCol names outputCol",
        "Word2VecModel": (
            "inputCol maxIter maxSentenceLength minCount numPartitions outputCol seed stepSize vectorSize windowSize"
        ),
    }.items()
}
_FLAGS = "binary caseSensitive dropLast gaps inverse toLowercase withCentering withMean withScaling withStd"
_NUMBERS = (
    "degree fdr fpr fwe k lower max maxCategories maxDF maxIter maxSentenceLength min minCount minDF minDocFreq minTF"
    " minTokenLength missingValue n numFeatures numPartitions numTopFeatures p percentile relativeError seed"
    " selectionThreshold size smoothing stepSize threshold upper varianceThreshold vectorSize vocabSize windowSize"
)
_LISTS_OF_NUMBERS = "indices splits thresholds"
_LISTS_OF_TEXTS = "categoricalCols inputCols labels names outputCols stopWords"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    # Spark writes as texts what JSON has no numbers for.
    return type(value) in (int, float) or value in ("Inf", "-Inf", "NaN")


def _list_of(is_one: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(is_one, value))


def _is_vector(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) <= {"type", "size", "indices", "values"}
        and all(_is_number(each) or _list_of(_is_number)(each) for each in value.values())
    )


# What is not named here is a text.
_TYPES: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(_FLAGS.split(), _is_flag),
    **dict.fromkeys(_NUMBERS.split(), _is_number),
    **dict.fromkeys(_LISTS_OF_NUMBERS.split(), _list_of(_is_number)),
    **dict.fromkeys(_LISTS_OF_TEXTS.split(), _list_of(_is_text)),
    "splitsArray": _list_of(_list_of(_is_number)),
    "scalingVec": _is_vector,
}
# Of the params of our own stages, by the converter that Spark ML checks them with; others take any value.
_CONVERTERS: dict[str, Callable[[object], bool]] = {
    "toString": _is_text,
    "class_weight_text": _is_text,
    "toBoolean": _is_flag,
    "toInt": _is_number,
    "toFloat": _is_number,
    "toListString": _list_of(_is_text),
    "toListInt": _list_of(_is_number),
    "toListFloat": _list_of(_is_number),
}

_NAME = re.compile(r"[\w-]+", re.ASCII)
# As Spark's writers call them.
_METADATA = re.compile(r"part-\d{5}(?:-[0-9a-f-]{36}-c\d{3}\.txt)?")
_DATA = re.compile(r"part-\d{5}-[0-9a-f-]{36}-c\d{3}(?:\.[a-z0-9]+)?\.parquet")
# Of types of columns that are classes, these; Spark makes the class that a Parquet file names.
_COLUMN_CLASSES = {f"org.apache.spark.ml.linalg.{name}" for name in ("VectorUDT", "MatrixUDT")}
_ROW_METADATA = (b"org.apache.spark.sql.parquet.row.metadata", b"org.apache.spark.sql.parquet.row.attributes")


def check(folder: str, own: Mapping[str, type[Params]], own_files: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a saved pipeline that holds anything else than what is known to be harmless.

    Args:
        folder: Folder of the pipeline.
        own: Further stages by the names of their classes; their params are those that they declare.
        own_files: What they keep beside their metadata.

    Raises:
        StoreError: It names a stage, a param or a file that is none of these, or cannot be read.
    """
    found = {}
    for status in files.walk(folder):
        if status.error is not None:
            raise _strange(status.path, f"which cannot be read ({status.error})")
        found[status.path[len(folder.rstrip("/")) + 1 :]] = status
    _Saved(folder, found, own, own_files).check()


class _Saved:
    """The files of a saved pipeline.

    Args:
        folder: Where it is.
        found: Its files by their paths inside; those that are known are taken out.
        own: As for `check`.
        own_files: As for `check`.
    """

    def __init__(
        self,
        folder: str,
        found: dict[str, files.FileStatus],
        own: Mapping[str, type[Params]],
        own_files: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._folder, self._found, self._own, self._own_files = folder, found, own, own_files

    def check(self) -> None:
        if self._metadata("").get("class") not in _PIPELINES:
            raise _strange(f"{self._folder}/metadata", "which is no PipelineModel's")
        self._stage("")
        for relative in sorted(self._found):
            raise _strange(f"{self._folder}/{relative}", "which belongs to no stage")

    def _stage(self, prefix: str) -> None:
        """Check one stage, and those in it; `prefix` is its path inside of the pipeline, with a slash."""
        metadata = self._metadata(prefix)
        class_name = metadata.get("class")
        place = f"{self._folder}/{prefix}metadata"
        if not isinstance(class_name, str):
            raise _strange(place, "which names no class")
        if class_name in _PIPELINES:
            stages = self._params(place, metadata, class_name, _of_pipeline)["stageUids"]
            for number, uid in enumerate(stages):
                self._stage(f"{prefix}stages/{number:0{len(str(len(stages)))}d}_{uid}/")
        elif class_name in self._own:
            self._params(place, metadata, class_name, _declared(self._own[class_name]))
            for name in self._own_files.get(class_name, ()):
                self._take(prefix + name)
        elif class_name.startswith(_FEATURE) and class_name.removeprefix(_FEATURE) in SPARK_STAGES:
            known = SPARK_STAGES[class_name.removeprefix(_FEATURE)]
            self._params(place, metadata, class_name, {name: _TYPES.get(name, _is_text) for name in known})
            for relative in self._parts(f"{prefix}data/", _DATA):
                _check_columns(f"{self._folder}/{relative}")
        else:
            raise _strange(place, f"which names {display.shown(class_name)[:200]}")
        for part in ("metadata/", "data/"):
            self._parts(prefix + part, _METADATA if part == "metadata/" else _DATA, take=True)

    def _params(
        self,
        place: str,
        metadata: Mapping[str, Any],
        class_name: str,
        known: Mapping[str, Callable[[object], bool]],
    ) -> dict[str, Any]:
        """The params of a stage, which are all known."""
        values: dict[str, Any] = {}
        for key in ("defaultParamMap", "paramMap"):
            given = metadata.get(key, {})
            if not isinstance(given, dict):
                raise _strange(place, f"whose {key} is none")
            values |= given
            for name, value in given.items():
                if name not in known:
                    raise _strange(place, f"which gives {class_name} a param {display.shown(name)[:200]}")
                if value is not None and not known[name](value):
                    raise _strange(place, f"which gives {class_name} a {name} of another type than it has")
        if class_name in _PIPELINES and not isinstance(values.get("stageUids"), list):
            raise _strange(place, "which names no stages")
        return values

    def _metadata(self, prefix: str) -> dict[str, Any]:
        parts = self._parts(f"{prefix}metadata/", _METADATA)
        place = f"{self._folder}/{prefix}metadata"
        if len(parts) != 1:
            raise _strange(place, f"with {len(parts)} files of metadata")
        if self._found[parts[0]].length > _MOST_BYTES:
            raise _strange(place, f"of more than {_MOST_BYTES:,} bytes")
        lines = files.read_bytes(f"{self._folder}/{parts[0]}").splitlines()
        try:
            # Spark takes the first line, as UTF-8.
            content = json.loads(lines[0].decode("utf-8"), object_pairs_hook=_without_repetition)
        except (ValueError, IndexError, RecursionError):
            content = None
        if len(lines) != 1 or not isinstance(content, dict):
            raise _strange(place, "which is not one line of JSON")
        return content

    def _parts(self, folder: str, name: re.Pattern[str], *, take: bool = False) -> list[str]:
        """The files of a folder that Spark wrote; with `take` these, their checksums and marks are done with."""
        parts = [
            relative
            for relative in self._found
            if relative.startswith(folder) and name.fullmatch(relative.removeprefix(folder))
        ]
        if take:
            for relative in (*parts, f"{folder}_SUCCESS"):
                self._take(relative)
        return parts

    def _take(self, relative: str) -> None:
        folder, slash, name = relative.rpartition("/")
        self._found.pop(relative, None)
        self._found.pop(f"{folder}{slash}.{name}.crc", None)


def _declared(stage: type[Params]) -> dict[str, Callable[[object], bool]]:
    """The params of a stage of ours, and how their values are told."""
    return {
        param.name: _CONVERTERS.get(getattr(param.typeConverter, "__name__", ""), lambda value: True)
        for param in stage().params
    }


_of_pipeline: dict[str, Callable[[object], bool]] = {
    "stageUids": _list_of(lambda uid: isinstance(uid, str) and _NAME.fullmatch(uid) is not None),
    "language": _is_text,
}


def _check_columns(path: str) -> None:
    """Refuse a Parquet file with columns of classes that are not Spark ML's vectors and matrices."""
    try:
        found = pq.read_schema(pa.BufferReader(files.read_bytes(path))).metadata or {}
        for key in _ROW_METADATA:
            json.loads(found.get(key, b"{}"), object_pairs_hook=_without_other_classes)
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise _strange(path, f"which is no table of a stage ({display.shown(str(error))[:200]})") from None


def _without_other_classes(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = _without_repetition(pairs)
    if "serializedClass" in found or (
        found.get("type") == "udt" and found.get("class") not in _COLUMN_CLASSES
    ):
        raise ValueError(f"a column of the class {found.get('class') or found.get('pyClass')}")
    return found


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The JVM may take the first of two values with one name, where Python takes the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that occurs twice")
    return found


def _strange(path: str, what: str) -> StoreError:
    return StoreError(
        f"{display.shown(path)}, {what}",
        "a pipeline of our own stages and of Spark ML's that only compute: others could be any program",
        "Use a version that was published by train or models import",
    )
