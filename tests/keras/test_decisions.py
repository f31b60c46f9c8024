"""Sets that hold the true species as often as promised, and what is called unknown."""

import re

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from seedlings_spark.errors import CorpusError
from seedlings_spark.models import decisions

NUM, FITTED, CLASSES = 3000, 500, 12


def test_each_resplit_keeps_its_promises_within_the_bounds_of_chance() -> None:
    draw = np.random.default_rng(7)
    truth = draw.integers(0, CLASSES, NUM)
    logits = draw.normal(0, 1.5, (NUM, CLASSES))
    logits[np.arange(NUM), truth] += 2
    values = np.exp(logits)
    values = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    own, highest = values[np.arange(NUM), truth], values.max(axis=1)
    covered, unknown = [], []
    for _ in range(200):
        order = draw.permutation(NUM)
        fitted, others = order[:FITTED], order[FITTED:]
        found = decisions.fit(own[fitted], highest[fitted], coverage=0.9, max_unknown=0.05)
        # As Angelopoulos and Bates 2021 (arXiv:2107.07511, section 1) have it.
        level = np.ceil((FITTED + 1) * 0.9) / FITTED
        quantile = np.quantile(1 - own[fitted].astype(np.float64), level, method="inverted_cdf")
        expected = 1 - values[others].astype(np.float64) <= quantile
        sets = values[others] >= found.set_from
        assert (sets == expected).all()
        covered.append(int(sets[np.arange(NUM - FITTED), truth[others]].sum()))
        unknown.append(int((highest[others] < found.unknown_below).sum()))
    # An order statistic's rank among images like it is beta-binomial.
    of_covered = stats.betabinom(NUM - FITTED, 451, 50)
    of_unknown = stats.betabinom(NUM - FITTED, 25, 476)
    for counts, law in ((covered, of_covered), (unknown, of_unknown)):
        assert abs(np.mean(counts) - law.mean()) < 4 * law.std() / np.sqrt(len(counts))
        low, high = law.ppf([0.0005, 0.9995])
        assert sum(not low <= count <= high for count in counts) <= 2


@pytest.mark.parametrize(
    ("asked", "least"), [({"coverage": 0.95}, 19), ({"coverage": 0.99}, 99), ({"max_unknown": 0.02}, 49)]
)
def test_too_few_images_promise_nothing_and_enough_do(asked: dict[str, float], least: int) -> None:
    values = np.linspace(0.1, 1, least)
    settings = {"coverage": 0.0, "max_unknown": 0.0} | asked
    found = decisions.fit(values, values, **settings)
    assert max(found.set_from, found.unknown_below) == pytest.approx(0.1)
    with pytest.raises(CorpusError, match=re.escape(f"at least {least}")):
        decisions.fit(values[1:], values[1:], **settings)


def test_thresholds_have_the_best_f1_that_there_is_and_part_no_equal_probabilities() -> None:
    draw = np.random.default_rng(3)
    truth = (draw.random((200, 5)) < (0.5, 0.3, 0.05, 0.0, 0.5)).astype(np.float32)
    values = np.clip(truth * 0.25 + draw.random((200, 5)) * 0.75, 0, 1).astype(np.float32)
    values[:, 1] = np.round(values[:, 1], 1)  # many are equal
    values[:, 4] = 0
    found = decisions.fit_thresholds(values, truth)
    for place in range(3):
        own, wanted = values[:, place], truth[:, place]
        best = max(metrics.f1_score(wanted, own >= each) for each in own)
        assert metrics.f1_score(wanted, own >= found.values[place]) == pytest.approx(best)
        assert found.f1[place] == pytest.approx(best)
        # Half-way between two probabilities, where no engine's rounding matters.
        assert np.abs(own - found.values[place]).min() > 1e-4
    assert found.values[3:] == (0.5, 0.5) and found.f1[3:] == (0, 0)
    assert found.support == tuple(truth.sum(axis=0)) and found.images == 200


def test_thresholds_that_were_fitted_on_one_view_are_doubted_of_several_and_rightly() -> None:
    draw = np.random.default_rng(0)

    def views(count: int) -> np.ndarray:
        """Probabilities of an image by eight views, which differ."""
        logits = draw.normal(0, 2, (count, 1, 5)) + draw.normal(0, 1, (count, 8, 5))
        return np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)

    known, new = views(4_000), views(4_000)
    highest = known[:, 0].max(axis=1)
    fitted = decisions.fit(highest, highest, coverage=0.0, max_unknown=0.05)
    unknown = [(each.max(axis=1) < fitted.unknown_below).mean() for each in (new[:, 0], new.mean(axis=1))]
    assert unknown[0] < 0.06 and unknown[1] > 1.5 * unknown[0]
    assert fitted.doubt(1) == "" == decisions.Decisions().doubt(8)
    assert fitted.doubt(8).startswith("--tta 8 with thresholds that were fitted without: more known species")
