"""What is worth recording of a training run: what `SeedlingsModel.summary` gives and a version's manifest keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Updates:
    """What an asynchronous run has applied.

    Args:
        rule: How updates entered the model.
        updates: All that were applied.
        updates_of_rank: Updates of each rank.
        rank_switches: How often an update was another rank's than the one before.
        staleness: `mean`, `max` and `histogram` of how many updates of others came between pull and push.
    """

    rule: str
    updates: int
    updates_of_rank: Mapping[str, int]
    rank_switches: int
    staleness: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingRecord:
    """A run that has ended.

    Args:
        mode: "synchronous", "asynchronous" or "hogwild".
        rows: To train on, of each shard.
        held_out_rows: Held-out rows of all workers together.
        rows_fingerprint: Fingerprint of all rows, with labels, weights and what is held out.
        precision: That the workers computed in.
        environment: Environment of the first worker.
        environment_differences: In what the others differ.
        updates: Updates of an asynchronous run.
        history: For each metric its values, one an epoch.
        rows_of_quarter: With a curriculum, of each epoch how many rows of each quarter of difficulty it went through,
            the easiest first.
        stage_failures: How often the workers' stage was started again.
        shards_moved: How many times a slow worker has lost a shard to another one, or got it back.
        workers: What each worker of the last generation has left behind, by rank.
    """

    mode: str
    rows: Sequence[int]
    held_out_rows: int
    rows_fingerprint: str
    precision: str
    environment: Mapping[str, Any]
    environment_differences: Sequence[str]
    updates: Updates | None = None
    history: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    rows_of_quarter: Sequence[Sequence[int]] = ()
    stage_failures: int = 0
    shards_moved: int = 0
    workers: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TrainingRecord":
        """The counterpart of `as_dict`; what only a later release knows is left out."""
        found = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        of_updates = {each.name: values[each.name] for each in fields(Updates) if each.name in values}
        found["updates"] = Updates(**of_updates) if of_updates else None
        return cls(**found)

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name; those of `updates` among the others, or not at all."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "updates":
                found[each.name] = list(value) if isinstance(value, tuple) else value
            elif value is not None:
                found |= vars(value)
        return found
