"""Runs over time, as `watch` shows them."""

from typing import Any

import pytest

from seedlings_spark.reports import watching


@pytest.mark.parametrize(
    ("indices", "first", "since"),
    [
        ([0.1, 0.0, 0.25], None, None),
        ([0.1, 0.3, 0.0], 1, None),
        ([0.1, 0.3, 0.0, 0.4, None, 0.5], 1, 3),
        ([0.26, 0.3], 0, 0),
        ([None, None], None, None),
        ([0.3, None], 0, 0),  # of which nothing is known is neither
    ],
)
def test_the_first_run_out_of_the_corridor_is_named_and_the_one_since_when_none_is_inside(
    indices: list[float | None], first: int | None, since: int | None
) -> None:
    def manifest(number: int, index: float | None) -> dict[str, Any]:
        of = [
            {"name": "species", "psi": 0.9, "noise": 1.0, "largest": "within chance"},
            {"name": "<i>", "psi": index, "noise": 0.0, "largest": "higher"},
        ]
        said = {"verdict": "stable", "worst": index or 0.0, "of": [] if index is None else of}
        known = {"model_name": "m", "model_version": "v0001", "scored": 7, "rejected": 1, "drift": said}
        return {"run": f"run {number}", "started": f"2026-11-{number + 1:02d}T10:00:00+00:00", **known}

    found = watching.watched([manifest(number, each) for number, each in enumerate(indices)], 0.25)
    names = [None if place is None else f"run {place}" for place in (first, since)]
    assert [found.to_dict()[key] for key in ("first", "since")] == names
    page = found.page("scores")
    assert page.count("<circle") == sum(index is not None for index in indices)
    assert page.count('class="dot"') == sum(index is not None and index > 0.25 for index in indices)
    assert "<i>" not in page and ("&lt;i&gt; higher" in page) == any(indices)
    assert len(found.table().splitlines()) >= len(indices) + 2
