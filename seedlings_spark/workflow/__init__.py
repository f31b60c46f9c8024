"""What the jobs do, each as one call: options in, a result out, nothing printed.

Each takes the options that the command line has (`config`), checks them alike, and returns what it has made. What they
need is imported when they are asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seedlings_spark.workflow.exploring import explore
    from seedlings_spark.workflow.featurizing import featurize
    from seedlings_spark.workflow.forgetting import forget
    from seedlings_spark.workflow.jobs import Trained, evaluate, models, prepare, score, train
    from seedlings_spark.workflow.late_labels import feedback
    from seedlings_spark.workflow.neighbours import similar
    from seedlings_spark.workflow.reproduction import reproduce
    from seedlings_spark.workflow.search import tune
    from seedlings_spark.workflow.serving import serve
    from seedlings_spark.workflow.watching import watch

__all__ = [
    "Trained",
    "evaluate",
    "explore",
    "featurize",
    "feedback",
    "forget",
    "models",
    "prepare",
    "reproduce",
    "score",
    "serve",
    "similar",
    "train",
    "tune",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name == "serve":  # without Spark
        from seedlings_spark.workflow.serving import serve

        return serve
    if name == "explore":
        from seedlings_spark.workflow.exploring import explore

        return explore
    if name == "featurize":
        from seedlings_spark.workflow.featurizing import featurize

        return featurize
    if name == "feedback":
        from seedlings_spark.workflow.late_labels import feedback

        return feedback
    if name == "forget":
        from seedlings_spark.workflow.forgetting import forget

        return forget
    if name == "reproduce":
        from seedlings_spark.workflow.reproduction import reproduce

        return reproduce
    if name == "similar":
        from seedlings_spark.workflow.neighbours import similar

        return similar
    if name == "watch":
        from seedlings_spark.workflow.watching import watch

        return watch
    if name == "tune":
        from seedlings_spark.workflow.search import tune

        return tune
    if name in __all__:
        from seedlings_spark.workflow import jobs

        return getattr(jobs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
