"""What workers and master exchange."""

import enum

from seedlings_spark.training import rules


class Exchanged(enum.StrEnum):
    """What a worker hands in after training steps, and what it is given to start from."""

    GRADIENT = "gradient"  # of one step, from the master's weights: the master's optimizer makes the step
    WEIGHTS = "weights"  # after steps of its own, with an optimizer whose slots stay with it
    STATE = "state"  # weights and optimizer slots, after steps of its own

    @classmethod
    def of(cls, mode: str, frequency: str | int, rule: str) -> "Exchanged":
        """What a run exchanges.

        Args:
            mode: "synchronous", "asynchronous" or "hogwild".
            frequency: "batch", "epoch" or a number of steps.
            rule: Of `rules.RULES`, or "".
        """
        if frequency == "batch" and rule not in rules.ELASTIC:
            return cls.GRADIENT
        return cls.STATE if mode == "synchronous" else cls.WEIGHTS
