"""Accuracy on parts of a split: which slices there are, and which of them are the worst."""

import datetime
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from seedlings_spark.reports import slices

NUM = 800


def test_fishers_test_is_that_of_scipy() -> None:
    draw = np.random.default_rng(0)
    for total in (1, 30, 1_000, 100_000):
        for _ in range(30):
            total_right, num = (int(each) for each in draw.integers(0, total + 1, 2))
            least, most = max(0, num + total_right - total), min(num, total_right)
            for right in {least, most, int(draw.integers(least, most + 1)), round(num * total_right / total)}:
                if not least <= right <= most:
                    continue
                wrong = total - total_right
                table = [[right, num - right], [total_right - right, wrong - num + right]]
                expected = stats.fisher_exact(table, alternative="less").pvalue
                found = slices.fewer_right(right, num, total_right, total)
                assert found == pytest.approx(expected, rel=1e-6, abs=1e-290), table


def planted(seed: int) -> dict[str, np.ndarray]:
    """Pictures of which camera C fails, and camera B in field 2."""
    draw = np.random.default_rng(seed)
    camera = draw.choice(["A", "B", "C", "D"], NUM, p=[0.4, 0.3, 0.1, 0.2])
    field = draw.choice(["1", "2", "3", ""], NUM, p=[0.4, 0.3, 0.2, 0.1])
    fails = (camera == "C") | ((camera == "B") & (field == "2"))
    return {
        "camera": camera,
        "field": field,
        "exposure": draw.normal(0, 1, NUM),
        "day": np.array(
            [datetime.date(2026, 5, 1) + datetime.timedelta(int(each)) for each in draw.integers(0, 60, NUM)]
        ),
        "plant": np.array([f"plant {each}" for each in draw.geometric(0.04, NUM)]),
        "is_right": draw.random(NUM) < np.where(fails, 0.3, 0.9),
    }


def test_a_planted_slice_and_a_planted_pair_are_the_worst_and_all_numbers_are_right(spark: Any) -> None:
    here, there = planted(0), planted(1)
    there["camera"] = np.where(there["camera"] == "D", "E", there["camera"])
    names = ["camera", "field", "exposure", "day", "plant"]
    rows = [
        (is_here, bool(side["is_right"][n]) if is_here else None, *(side[name][n] for name in names[:2]),
         float(side["exposure"][n]), side["day"][n], side["plant"][n])
        for is_here, side in ((True, here), (False, there))
        for n in range(NUM)
    ]  # fmt: skip
    layout = f"{slices.IS_LOOKED_AT} boolean, {slices.IS_RIGHT} boolean, camera string, field string, exposure double"
    found = slices.slices(spark.createDataFrame(rows, f"{layout}, day date, plant string"), names)

    worst = [dict(each.values) for each in found.worst]
    # Camera B and field 2 are worse than the rest by that pair alone; other pairs with camera C are as bad as it is.
    assert sorted(worst[:2], key=len) == [{"camera": "C"}, {"camera": "B", "field": "2"}]
    assert all(len(each) == 1 for each in worst[2:])
    days = np.array([each.toordinal() for each in here["day"]])
    quarters = {
        "exposure": np.searchsorted(np.quantile(here["exposure"], [0.25, 0.5, 0.75]), here["exposure"]),
        "day": np.searchsorted(np.quantile(days, [0.25, 0.5, 0.75]), days),
    }
    plants, counts = np.unique(here["plant"], return_counts=True)
    frequent = plants[np.argsort(-counts, kind="stable")][: slices.MAX_VALUES]
    plant = np.where(np.isin(here["plant"], frequent), here["plant"], slices.OTHERS)
    of = {
        **quarters,
        "camera": here["camera"],
        "field": np.where(here["field"] == "", slices.MISSING, here["field"]),
        "plant": plant,
    }

    def mask(name: str, value: str) -> np.ndarray:
        if name in quarters:
            labels = [dict(each.values)[name] for each in found.singles if name in each.values]
            return of[name] == labels.index(value)
        return of[name] == value

    groups = {name: len([each for each in found.singles if name in each.values]) for name in names}
    assert groups == {"camera": 5, "field": 4, "exposure": 4, "day": 4, "plant": slices.MAX_VALUES + 1}
    for each in (*found.singles, *found.worst):
        chosen = np.all([mask(*pair) for pair in each.values.items()], axis=0)
        assert (each.num_images, each.right) == (chosen.sum(), here["is_right"][chosen].sum()), each.name
        if each.num_images:
            right = here["is_right"]
            assert each.accuracy == pytest.approx(
                metrics.accuracy_score(np.ones(chosen.sum()), right[chosen])
            )
            interval = stats.binomtest(each.right, each.num_images).proportion_ci(method="wilson")
            assert each.interval == pytest.approx(tuple(interval))
    # The least p-value is that of one table, times the number of tests.
    chosen = np.all([mask(*pair) for pair in worst[0].items()], axis=0)
    table = metrics.confusion_matrix(chosen, here["is_right"])[::-1, ::-1]
    assert found.worst[0].p_value == pytest.approx(
        found.num_tests * stats.fisher_exact(table, alternative="less").pvalue, rel=1e-6
    )
    assert 100 < found.num_tests < 250

    beside = {each.name: each for each in found.compared}
    assert [beside[name].verdict for name in names[1:]] == ["stable"] * 4
    assert beside["camera"].verdict == "shifted" and beside["camera"].psi > 1
    cameras = {dict(each.values).get("camera"): each.train_images for each in found.singles}
    assert cameras["E"] == (there["camera"] == "E").sum() and cameras["D"] == 0


def test_numbers_in_a_text_are_numbers_and_equal_pictures_have_no_slices(spark: Any) -> None:
    rows = [(True, n % 3 > 0, str(n / 10), "same", None) for n in range(100)]
    layout = f"{slices.IS_LOOKED_AT} boolean, {slices.IS_RIGHT} boolean, exposure string, place string, none string"
    found = slices.slices(spark.createDataFrame(rows, layout), ["exposure", "place", "none"])
    told = [(each.name, each.num_images, each.p_value is None) for each in found.singles]
    assert told == [
        ("exposure up to 2.475", 25, False),
        ("exposure 2.475 to 4.95", 25, False),
        ("exposure 4.95 to 7.425", 25, False),
        ("exposure above 7.425", 25, False),
        ("place same", 100, True),
        ("none (none)", 100, True),
    ]
    assert (found.worst, found.num_tests, found.compared) == ((), 4, ())


def test_what_is_not_finite_has_no_value_and_of_no_pictures_there_are_no_slices(spark: Any) -> None:
    rows = [(True, True, n / 10 if n < 40 else math.inf) for n in range(100)]
    layout = f"{slices.IS_LOOKED_AT} boolean, {slices.IS_RIGHT} boolean, ratio double"
    table = spark.createDataFrame(rows, layout)
    told = [(each.name, each.num_images) for each in slices.slices(table, ["ratio"]).singles]
    quarters = ["up to 0.975", "0.975 to 1.95", "1.95 to 2.925", "above 2.925"]
    assert told == [*((f"ratio {name}", 10) for name in quarters), ("ratio (none)", 60)]
    assert slices.slices(table.limit(0), ["ratio"]).singles == ()
