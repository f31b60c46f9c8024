"""Labels that are probably wrong, as cleanlab finds them."""

import numpy as np
import pytest
from cleanlab.filter import find_label_issues

from seedlings_spark.reports.labels import Suspects

CLASSES = 5


@pytest.mark.parametrize("skill", [0.5, 1.5, 4.0])
def test_suspect_labels_are_those_of_cleanlab(skill: float) -> None:
    draw = np.random.default_rng(int(10 * skill))
    truth = draw.integers(0, CLASSES, 2000)
    logits = draw.normal(0, 1, (len(truth), CLASSES))
    logits[np.arange(len(truth)), truth] += skill
    values = np.exp(logits)
    values /= values.sum(axis=1, keepdims=True)
    labels = np.where(draw.random(len(truth)) < 0.1, draw.integers(0, CLASSES, len(truth)), truth)
    means = tuple(float(values[labels == each, each].mean()) for each in range(CLASSES))
    is_found = Suspects(means).are_suspect(labels, values)
    expected = find_label_issues(labels, values, filter_by="confident_learning")
    assert (is_found == expected).all() and 50 < expected.sum() < 1500
    wrong = labels != truth
    assert (wrong & is_found).sum() > 0.3 * wrong.sum()
