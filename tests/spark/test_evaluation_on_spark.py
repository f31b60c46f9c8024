import math
import random

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions
from sklearn import metrics

from seedlings_spark import schema
from seedlings_spark.errors import CorpusError, SeedlingsError
from seedlings_spark.reports import evaluation

CLASSES = ["Shepherd's `Purse`", "Maïs", "Sugar beet", "never seen", ' "quoted", $x$ ']
LAYOUT = f"{schema.SPECIES} string, {schema.PREDICTED_SPECIES} string"


def table(spark, rows):
    return spark.createDataFrame(rows, LAYOUT).repartition(3)


def test_an_empty_table_counts_nothing(spark):
    matrix = evaluation.confusion_matrix(table(spark, []), CLASSES)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[0] * 5] * 5


@pytest.mark.parametrize("strange", ["Thistle", "", "maïs", "Maïs "])
def test_a_species_outside_of_the_classes_is_refused_by_name(spark, strange):
    rows = [("Maïs", "Maïs"), (strange, "Maïs"), (strange, "Sugar beet"), (None, "Sugar beet"), ("~", "Maïs")]
    with pytest.raises(CorpusError) as caught:
        evaluation.confusion_matrix(table(spark, rows), CLASSES)
    assert caught.value.found.startswith("4 of 5 rows")
    assert caught.value.found.endswith(f"such as {strange!r} (2 rows)")
    assert "Sugar beet" in caught.value.expected


def test_a_null_species_is_refused(spark):
    with pytest.raises(CorpusError, match=r"1 of 2 rows .* 'species', such as null \(1 row\)"):
        evaluation.confusion_matrix(table(spark, [("Maïs", "Maïs"), (None, "Maïs")]), CLASSES)


@pytest.mark.parametrize("strange", ["Thistle", None])
def test_a_prediction_outside_of_the_classes_is_refused(spark, strange):
    with pytest.raises(SeedlingsError, match=r"1 of 2 rows .* 'predicted_species'"):
        evaluation.confusion_matrix(table(spark, [("Maïs", "Maïs"), ("Maïs", strange)]), CLASSES)


def test_any_number_of_strange_names_comes_to_the_driver_as_one(spark):
    many = spark.range(5000).select(
        functions.concat(functions.lit("x"), functions.format_string("%04d", "id")).alias(schema.SPECIES),
        functions.lit("Maïs").alias(schema.PREDICTED_SPECIES),
    )
    with pytest.raises(CorpusError, match=r"5000 of 5000 rows .* such as 'x0000' \(1 row\)") as caught:
        evaluation.confusion_matrix(many, CLASSES)
    assert "x0001" not in str(caught.value)


def test_labels_that_are_numbers_are_no_species_unless_they_print_alike(spark):
    numbers = spark.createDataFrame(
        [(float("nan"), 1), (float("nan"), 0), (0.0, 0)], "species double, predicted_species int"
    )
    with pytest.raises(CorpusError, match=r"3 of 3 rows .* such as 'NaN' \(2 rows\)"):
        evaluation.confusion_matrix(numbers, ["0", "1"])
    matrix = evaluation.confusion_matrix(numbers.withColumn("species", functions.lit(1)), ["0", "1"])
    assert matrix.tolist() == [[0, 0], [2, 1]]


def test_predictions_by_probabilities_that_are_not_numbers_are_refused(spark):
    numbers = [[0.5, 0.5], [math.nan, 0.5], [0.5, math.nan]]
    rows = [("Maïs", "Maïs", Vectors.dense(each)) for each in numbers]
    predictions = spark.createDataFrame(rows, ["species", "predicted_species", "probability"])
    with pytest.raises(SeedlingsError, match=r"'probability' of 2 of 3 rows"):
        evaluation.confusion_matrix(predictions, ["Maïs"], probability="probability")
    good = predictions.limit(1)
    assert evaluation.confusion_matrix(good, ["Maïs"], probability="probability").tolist() == [[1]]


def test_a_table_without_true_species_is_refused(spark):
    with pytest.raises(CorpusError, match="no column 'species'"):
        evaluation.confusion_matrix(table(spark, []).drop(schema.SPECIES), CLASSES)


def test_the_counts_are_those_of_scikit_learn(spark):
    draw = random.Random(7)
    seen = [name for name in CLASSES if name != "never seen"]
    rows = [(draw.choice(seen), draw.choice(seen)) for _ in range(300)]
    matrix = evaluation.confusion_matrix(table(spark, rows), CLASSES)
    truth, predicted = zip(*rows, strict=True)
    assert np.array_equal(matrix, metrics.confusion_matrix(truth, predicted, labels=CLASSES))
    assert matrix[3].sum() == matrix[:, 3].sum() == 0


def test_the_columns_can_have_other_names(spark):
    rows = [("Maïs", "Sugar beet"), ("Maïs", "Sugar beet"), ("Sugar beet", "Sugar beet")]
    renamed = spark.createDataFrame(rows, "`row` string, `column` string")
    matrix = evaluation.confusion_matrix(renamed, ["Maïs", "Sugar beet"], truth="row", predicted="column")
    assert matrix.tolist() == [[0, 2], [0, 1]]
