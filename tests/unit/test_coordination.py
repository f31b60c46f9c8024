"""How many workers are started, and what becomes of a stage that has lost the room for some of them."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from seedlings_spark.errors import CorpusError
from seedlings_spark.training import coordination
from seedlings_spark.training.coordination import Size, WorkerGroup
from seedlings_spark.training.launcher import Ended
from seedlings_spark.training.messages import Open, Rows
from seedlings_spark.training.server import Superseded


class Cluster:
    """Starts workers that open at once, as many as there are slots."""

    def __init__(self, slots: int, gone: int = 0) -> None:
        self.slots, self._gone = slots, gone
        self.started: list[int] = []
        self.rows = [f"rows of shard {shard}" for shard in range(8)]
        self.group = WorkerGroup(
            "run", Size(2, 4, lambda: self.slots), 8, self._launch, max_failures=8, grace_seconds=0.0
        )
        self.group.has_begun = True

    def _launch(self, generation: int, num_workers: int, ended: Ended) -> "Attempt":
        self.slots, self._gone = self.slots - self._gone, 0
        self.started.append(num_workers)
        with self.group.condition:
            for rank in range(min(num_workers, self.slots)):
                shards = [Rows(1, 0, self.rows[shard]) for shard in self.group.shards_of(rank)]
                with contextlib.suppress(Superseded):
                    self.group.enter(Open("run", generation, rank, shards=shards), replace=False)
        return Attempt(ended)


class Attempt:
    def __init__(self, ended: Ended) -> None:
        self._ended = ended

    def cancel(self) -> None:
        summaries: Sequence[Mapping[str, Any]] = ()
        self._ended(summaries, RuntimeError("cancelled"))

    def join(self, seconds: float) -> bool:
        return True


def test_as_many_workers_are_started_as_there_is_room_for() -> None:
    for slots, expected in ((3, 3), (9, 4)):
        cluster = Cluster(slots)
        assert len(cluster.group.gather()) == expected
        assert cluster.started == [expected]


def test_a_stage_some_of_whose_workers_find_no_room_is_started_again_with_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordination, "_LOOKS", 0)
    monkeypatch.setattr(coordination, "_WAKE_SECONDS", 0.01)
    cluster = Cluster(4, gone=1)
    assert len(cluster.group.gather()) == 3
    assert cluster.started == [4, 3] and cluster.group.num_failures == 1


def test_more_workers_are_started_when_there_is_room_for_them_and_only_then() -> None:
    cluster = Cluster(2)
    cluster.group.gather()
    cluster.group.grow()
    assert cluster.started == [2]
    cluster.slots = 7
    cluster.group.grow()
    assert cluster.started == [2, 4] and cluster.group.num_workers == 4 and cluster.group.num_failures == 0


def test_workers_that_come_later_have_the_rows_that_the_run_began_with_or_end_it() -> None:
    cluster = Cluster(2)
    cluster.group.gather()
    for slots, of_sixth in ((3, "rows of shard 5"), (4, "drawn anew")):
        cluster.group.wait(lambda: True)
        cluster.slots, cluster.rows[5] = slots, of_sixth
        cluster.group.grow()
    with pytest.raises(CorpusError, match=r"shard 5 .* Write the table first"):
        cluster.group.wait(lambda: True)


def test_workers_that_have_lost_each_other_and_do_not_end_by_themselves_are_ended() -> None:
    cluster = Cluster(2)
    cluster.group.gather()
    with cluster.group.condition:
        cluster.group.lost_link("worker 0 and worker 1 cannot reach each other")
    looks = itertools.count()
    cluster.group.wait(lambda: cluster.group.generation == 1 or next(looks) > 3)
    assert cluster.started == [2, 2]
