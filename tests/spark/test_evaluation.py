import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics

from seedlings_spark.reports import evaluation

TWO = ("Maize", "Charlock")
THREE = ("Maize", "Charlock", "Cleavers")


def labels_of(confusion):
    """The (true, predicted) class numbers of which `confusion` is the matrix."""
    places = np.argwhere(confusion >= 0)
    pairs = np.repeat(places, confusion.ravel(), axis=0)
    return pairs[:, 0], pairs[:, 1]


def matrices(max_classes=6, max_count=9):
    return st.integers(1, max_classes).flatmap(
        lambda n: arrays.arrays(np.int64, (n, n), elements=st.one_of(st.just(0), st.integers(0, max_count)))
    )


def names(confusion):
    return [f"species {number}" for number in range(len(confusion))]


@pytest.mark.parametrize(("hits", "images"), [(0, 1), (1, 1), (17, 18), (250, 274), (5539, 5539)])
def test_the_interval_of_the_accuracy_is_wilsons(hits, images):
    result = evaluation.evaluate(np.array([[hits, images - hits], [0, 0]]), TWO)
    expected = scipy.stats.binomtest(hits, images).proportion_ci(0.95, method="wilson")
    assert result.accuracy_interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert result.to_dict()["accuracy_interval"] == list(result.accuracy_interval)


def test_without_images_the_averages_are_undefined_and_null_in_json():
    result = evaluation.evaluate(np.zeros((2, 2), dtype=np.int64), TWO)
    assert result.num_images == 0
    assert math.isnan(result.accuracy) and math.isnan(result.macro_f1) and math.isnan(result.weighted_f1)
    written = result.to_dict()
    averages = ("accuracy", "macro_f1", "micro_f1", "macro_precision", "macro_recall", "weighted_f1")
    assert [written[name] for name in averages] == [None] * 6
    assert written["accuracy_interval"] == [None, None]
    assert written["per_species"][0] == {
        "species": "Maize",
        "support": 0,
        "predicted": 0,
        "true_positives": 0,
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "false_positive_rate": None,
        "false_negative_rate": None,
    }
    assert evaluation.worst_confusions(result, 5) == ()


def test_a_species_that_does_not_occur_is_left_out_of_the_macro_averages():
    result = evaluation.evaluate(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), THREE)
    assert result.macro_recall == pytest.approx((0.75 + 1) / 2)
    assert result.macro_precision == pytest.approx((1 + 0.8) / 2)
    absent = result.per_species[2]
    assert (absent.precision, absent.recall, absent.f1) == (0.0, 0.0, 0.0)
    assert absent.false_positive_rate == 0.0
    assert math.isnan(absent.false_negative_rate)


def test_a_mistake_for_a_species_without_images_counts_in_the_macro_averages():
    result = evaluation.evaluate(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]), THREE)
    assert result.macro_recall == pytest.approx((0.75 + 1 + 0) / 3)
    assert result.per_species[2].false_positive_rate == pytest.approx(1 / 8)


def test_a_species_that_is_never_predicted_scores_zero():
    result = evaluation.evaluate(np.array([[0, 5], [0, 5]]), TWO)
    never = result.per_species[0]
    assert (never.precision, never.recall, never.f1) == (0.0, 0.0, 0.0)
    assert (never.false_positive_rate, never.false_negative_rate) == (0.0, 1.0)
    assert result.per_species[1].false_positive_rate == 1.0
    assert result.accuracy == 0.5


def test_with_one_species_nothing_can_be_mistaken_for_it():
    result = evaluation.evaluate(np.array([[7]]), ["Maize"])
    assert (result.accuracy, result.macro_f1) == (1.0, 1.0)
    assert math.isnan(result.per_species[0].false_positive_rate)


def test_counts_beyond_32_bits_stay_exact():
    result = evaluation.evaluate(np.array([[2**40, 1], [0, 2**40]]), TWO)
    assert result.num_images == 2**41 + 1
    assert result.per_species[0].support == 2**40 + 1


@pytest.mark.parametrize(
    ("confusion", "classes"),
    [
        (np.zeros((2, 3), dtype=np.int64), TWO),
        (np.zeros((3, 3), dtype=np.int64), TWO),
        (np.zeros((2, 2)), TWO),
        (np.array([[1, -1], [0, 1]]), TWO),
        (np.zeros((2, 2), dtype=np.int64), ("Maize", "Maize")),
        (np.zeros((0, 0), dtype=np.int64), ()),
    ],
)
def test_what_is_no_confusion_matrix_of_these_classes_is_refused(confusion, classes):
    with pytest.raises(ValueError, match="expected"):
        evaluation.evaluate(confusion, classes)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(matrices())
def test_the_scores_of_each_species_are_those_of_scikit_learn(confusion):
    result = evaluation.evaluate(confusion, names(confusion))
    if confusion.sum() == 0:
        return
    truth, predicted = labels_of(confusion)
    places = list(range(len(confusion)))
    assert np.array_equal(metrics.confusion_matrix(truth, predicted, labels=places), result.confusion)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, predicted, labels=places, average=None, zero_division=0
    )
    assert [scores.species for scores in result.per_species] == names(confusion)
    assert [scores.precision for scores in result.per_species] == pytest.approx(precision)
    assert [scores.recall for scores in result.per_species] == pytest.approx(recall)
    assert [scores.f1 for scores in result.per_species] == pytest.approx(f1)
    assert [scores.support for scores in result.per_species] == list(support)
    one_against_all = metrics.multilabel_confusion_matrix(truth, predicted, labels=places)
    for scores, ((tn, fp), (fn, tp)) in zip(result.per_species, one_against_all, strict=True):
        assert scores.true_positives == tp
        assert scores.predicted == tp + fp
        with np.errstate(invalid="ignore"):
            assert scores.false_positive_rate == pytest.approx(fp / (fp + tn), nan_ok=True)
            assert scores.false_negative_rate == pytest.approx(fn / (fn + tp), nan_ok=True)


@given(matrices())
def test_the_averages_are_those_of_scikit_learn(confusion):
    result = evaluation.evaluate(confusion, names(confusion))
    if confusion.sum() == 0:
        return
    truth, predicted = labels_of(confusion)

    def reference(average):
        scores = metrics.precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)
        return scores[:3]

    assert result.num_images == len(truth)
    assert result.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    macro = (result.macro_precision, result.macro_recall, result.macro_f1)
    assert macro == pytest.approx(reference("macro"))
    assert result.micro_f1 == pytest.approx(reference("micro")[2])
    assert result.weighted_f1 == pytest.approx(reference("weighted")[2])


@given(matrices())
def test_the_dict_is_json_without_nan(confusion):
    result = evaluation.evaluate(confusion, names(confusion))
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written == result.to_dict()
    assert written["confusion_matrix"] == confusion.tolist()
    assert written["classes"] == names(confusion)


def test_the_worst_confusions_come_first_and_ties_go_by_share():
    result = evaluation.evaluate(np.array([[90, 4, 6], [4, 4, 0], [1, 0, 0]]), THREE)
    worst = evaluation.worst_confusions(result, 3)
    assert [(each.truth, each.predicted, each.num_images) for each in worst] == [
        ("Maize", "Cleavers", 6),
        ("Charlock", "Maize", 4),
        ("Maize", "Charlock", 4),
    ]
    assert [each.share for each in worst] == pytest.approx([0.06, 0.5, 0.04])
    assert len(evaluation.worst_confusions(result, 99)) == 4
    assert evaluation.worst_confusions(result, 0) == ()
