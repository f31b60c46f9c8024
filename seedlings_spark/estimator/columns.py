"""What the columns of a table to train on must hold: looked at on the cluster, in one pass, before anything begins.

A stage of workers that fails over a row costs minutes and names one row of one of them. One aggregation of Spark tells
how many rows are wrong, of how many, and what one of them holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import ArrayType, BinaryType, BooleanType, NumericType

from seedlings_spark import schema
from seedlings_spark.errors import CorpusError

NUMBER, VECTOR = "number", "vector"


@dataclass(frozen=True)
class Fault:
    """What a row may be wrong in.

    Args:
        wrong: Whether a row is.
        found: What is said of such rows, as in "3 of 100 rows ...".
        expected: In every row.
        remedy: What to do.
        value: What such a row holds, for the message.
    """

    wrong: Column
    found: str
    expected: str
    remedy: str
    value: Column | None = None


def check(
    dataset: DataFrame,
    faults: Sequence[Fault],
    weight: Column | None = None,
    *,
    suspect: Column | None = None,
) -> int:
    """Look at all rows once.

    Args:
        dataset: Whose columns the faults are about.
        faults: The first that is found is told.
        weight: Sample weights, of which one at least must be above 0.
        suspect: Rows that are no fault by themselves, and are counted.

    Returns:
        Suspect rows.

    Raises:
        CorpusError: Some rows are wrong.
    """
    asked = [F.count(F.lit(1)).alias("rows")]
    asked.append((F.lit(1.0) if weight is None else F.coalesce(F.sum(weight), F.lit(0.0))).alias("weight"))
    doubt = F.lit(False) if suspect is None else F.coalesce(suspect, F.lit(True))
    asked.append(F.coalesce(F.sum(doubt.cast("long")), F.lit(0)).alias("suspect"))
    for place, fault in enumerate(faults):
        wrong = F.coalesce(fault.wrong, F.lit(True))
        value = F.lit("") if fault.value is None else F.coalesce(fault.value.cast("string"), F.lit("NULL"))
        asked.append(F.coalesce(F.sum(wrong.cast("long")), F.lit(0)).alias(f"count_{place}"))
        asked.append(F.min(F.when(wrong, value)).alias(f"value_{place}"))
    (found,) = dataset.agg(*asked).collect()
    for place, fault in enumerate(faults):
        count = found[f"count_{place}"]
        if count:
            value = found[f"value_{place}"]
            raise CorpusError(
                f"{count:,} of {found['rows']:,} rows {fault.found}{f', such as {value}' if value else ''}",
                fault.expected,
                fault.remedy,
            )
    if found["rows"] and found["weight"] == 0:
        raise CorpusError(
            f"{found['rows']:,} rows whose sample weights are all 0",
            "some weight above 0",
            "Correct weightCol, or leave it out",
        )
    return int(found["suspect"])


def label_type(dataset: DataFrame, name: str) -> str:
    """`NUMBER` or `VECTOR`: what a label column holds.

    Raises:
        CorpusError: Something else.
    """
    kind = dataset.schema[name].dataType
    if isinstance(kind, NumericType | BooleanType):
        return NUMBER
    if isinstance(kind, VectorUDT) or (
        isinstance(kind, ArrayType) and isinstance(kind.elementType, NumericType)
    ):
        return VECTOR
    raise CorpusError(
        f"a label column {name!r} of type {kind.simpleString()}",
        "class numbers, numbers to predict, or vectors of numbers",
        "Index the names of classes with StringIndexer, and give its outputCol as labelCol",
    )


def feature_column(dataset: DataFrame, name: str) -> Column:
    """The features as Spark hands them to Python: bytes, or an array of numbers."""
    if name not in dataset.columns:
        raise CorpusError(
            f"no column {name!r} among {', '.join(dataset.columns)}",
            "the features column",
            "Set featuresCol to the name of the column",
        )
    kind = dataset.schema[name].dataType
    if isinstance(kind, BinaryType):
        return schema.column(name)
    if isinstance(kind, VectorUDT):
        return vector_to_array(schema.column(name))
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, NumericType):
        return schema.column(name).cast("array<double>")
    raise CorpusError(
        f"a column {name!r} of type {kind.simpleString()}",
        "binary (pixels), a vector or an array of numbers",
        "Assemble the features with VectorAssembler, or prepare the images with `prepare`",
    )


def label_names(dataset: DataFrame, column: str) -> list[str]:
    """The names that StringIndexer left in the label column's metadata, in order."""
    if column not in dataset.columns:
        raise CorpusError(
            f"no column {column!r} among {', '.join(dataset.columns)}",
            "the label column",
            "Set labelCol to its name",
        )
    names = dataset.schema[column].metadata.get("ml_attr", {}).get("vals", [])
    return [str(name) for name in names]


def label_column(dataset: DataFrame, name: str) -> Column:
    """The label as the engine takes it: a double, or an array of them."""
    if label_type(dataset, name) == NUMBER:
        return schema.column(name).cast("double")
    if isinstance(dataset.schema[name].dataType, VectorUDT):
        return vector_to_array(schema.column(name))
    return schema.column(name).cast("array<double>")


def class_numbers(label: Column, num_classes: int, name: str) -> list[Fault]:
    """Faults of labels that are to be the numbers of classes.

    Args:
        label: A double.
        num_classes: Labels are 0 to one less.
        name: Name of the column.
    """
    expected = f"class numbers 0 to {num_classes - 1}"
    remedy = "Index the labels with StringIndexer, or drop such rows before fit"
    return [
        _missing(label, name, expected),
        Fault(
            label != F.rint(label),
            f"whose label {name!r} is no whole number",
            expected,
            f"{remedy}; for values to predict use a loss such as 'mse' with one output",
            label,
        ),
        Fault(
            (label < 0) | (label >= num_classes),
            f"whose label {name!r} is no class of the network",
            f"{expected}, one for each output of the network" if num_classes != 2 else expected,
            f"{remedy}, or give the network as many outputs as there are classes",
            label,
        ),
    ]


def numbers(label: Column, name: str) -> list[Fault]:
    """Faults of labels that are to be predicted as they are."""
    expected = "a finite number in every row"
    return [_missing(label, name, expected), _infinite(label, name, expected)]


def vectors(label: Column, length: int, name: str, *, sums_to_one: bool, at_most_one: bool) -> list[Fault]:
    """Faults of labels with an element for each output.

    Args:
        label: An array of doubles.
        length: That of every row's vector.
        name: Name of the column.
        sums_to_one: Whether the elements are shares of classes, as one-hot vectors are.
        at_most_one: Whether each element lies between 0 and 1.
    """
    expected = f"vectors of {length} finite numbers, one for each output of the network"
    faults = [
        Fault(label.isNull(), f"without a label in {name!r}", expected, "Drop such rows before fit"),
        Fault(
            F.size(label) != length,
            f"whose label {name!r} has another length",
            expected,
            "Correct the labels, or give the network as many outputs",
            F.size(label),
        ),
        Fault(
            F.exists(label, _is_not_finite),
            f"whose label {name!r} holds NULL, NaN or an infinite number",
            expected,
            "Drop such rows before fit",
        ),
    ]
    if at_most_one:
        faults.append(
            Fault(
                F.exists(label, lambda value: (value < 0) | (value > 1)),
                f"whose label {name!r} holds numbers outside of 0 and 1",
                "0 or 1 for each class",
                "Correct the labels, or set problem='regression' to predict numbers",
                label,
            )
        )
    if sums_to_one:
        total = F.aggregate(label, F.lit(0.0), lambda sum_, value: sum_ + value)
        faults.append(
            Fault(
                F.abs(total - 1) > 1e-3,
                f"whose label {name!r} does not add up to 1",
                "one-hot vectors, or the shares of each class",
                "Correct the labels; for classes that do not exclude each other use loss='binary_crossentropy'",
                label,
            )
        )
    return faults


def weights(weight: Column, name: str) -> list[Fault]:
    """Faults of sample weights."""
    expected = "a finite weight of 0 or more in every row"
    return [
        Fault(
            weight.isNull() | F.isnan(weight) | (F.abs(weight) == float("inf")) | (weight < 0),
            f"whose weight {name!r} is missing, negative or not finite",
            expected,
            "Correct the weights; a row that is not to count gets 0",
            weight,
        )
    ]


def features(
    column: Column, length: int, shape: tuple[int, ...], name: str, *, is_image: bool
) -> list[Fault]:
    """Faults of features.

    Args:
        column: Bytes, or an array of doubles.
        length: Values of every row.
        shape: As the network takes them.
        name: Name of the column.
        is_image: Whether they are bytes.
    """
    expected = f"{length:,} values in every row, which the network takes as {shape}"
    size = F.length(column) if is_image else F.size(column)
    faults = [
        Fault(column.isNull(), f"without features in {name!r}", expected, "Drop such rows before fit"),
        Fault(
            size != length,
            f"whose features {name!r} have another number of values",
            expected,
            "Prepare the corpus with the image size of the network, or build the network for this corpus",
            size,
        ),
    ]
    if not is_image:
        faults.append(
            Fault(
                F.exists(column, _is_not_finite),
                f"whose features {name!r} hold NULL, NaN or an infinite number",
                "finite numbers: one that is none makes the loss none",
                "Fill such values, for example with Imputer, or drop the rows",
            )
        )
    return faults


def held_out(dataset: DataFrame, name: str) -> list[Fault]:
    """Faults of the column that says which rows are held out.

    Raises:
        CorpusError: It is not boolean.
    """
    kind = dataset.schema[name].dataType
    if not isinstance(kind, BooleanType):
        raise CorpusError(
            f"a validationIndicatorCol {name!r} of type {kind.simpleString()}",
            "a boolean: true where a row is held out",
            f"Compare it with a value, for example withColumn({name!r}, col({name!r}) == 1)",
        )
    return [
        Fault(
            schema.column(name).isNull(),
            f"where {name!r} is NULL",
            "true or false in every row",
            "Fill it, for example with DataFrame.fillna",
        )
    ]


def difficulties(dataset: DataFrame, name: str) -> list[Fault]:
    """Faults of the column that says how difficult each row is.

    Raises:
        CorpusError: There is no such column, or it holds no numbers.
    """
    remedy = "Name another column as curriculum"
    if name not in dataset.columns:
        raise CorpusError(f"no column {name!r}", "the column of the curriculum", remedy)
    kind = dataset.schema[name].dataType
    if not isinstance(kind, NumericType):
        raise CorpusError(
            f"a column {name!r} of type {kind.simpleString()} as curriculum", "one of numbers", remedy
        )
    value = schema.column(name).cast("double")
    return [
        Fault(
            _is_not_finite(value),
            f"whose difficulty {name!r} is missing or not finite",
            "a finite number in every row, lower where a row is easier",
            "Fill it, for example with DataFrame.fillna",
            value,
        )
    ]


def _missing(label: Column, name: str, expected: str) -> Fault:
    return Fault(
        label.isNull() | F.isnan(label),
        f"without a label in {name!r} (NULL or NaN)",
        expected,
        "Drop such rows before fit, for example with DataFrame.dropna",
    )


def _infinite(label: Column, name: str, expected: str) -> Fault:
    return Fault(
        F.abs(label) == float("inf"),
        f"whose label {name!r} is infinite",
        expected,
        "Drop such rows before fit",
        label,
    )


def _is_not_finite(value: Column) -> Column:
    return value.isNull() | F.isnan(value) | (F.abs(value) == float("inf"))
