"""A model version over files: every listed file ends as a prediction or as a rejection.

Reading, decoding and the forward pass happen in one task, so that a picture crosses no process boundary. A run
writes into a folder of its own and appears by one rename; whoever reads the output sees whole runs only. One run at
a time writes to an output (`lock`), and what earlier runs have seen is in their folders too (`ledger`).
"""

from seedlings_spark.scoring.printing import drift_table, printed, short_summary, summary
from seedlings_spark.scoring.profile import (
    predicted_species,
    probabilities,
    profile_of_corpus,
    profile_of_images,
    profile_of_pixels,
    require_profile,
)
from seedlings_spark.scoring.run import ScoreRun, score
from seedlings_spark.scoring.runs import latest
from seedlings_spark.scoring.sql import register
from seedlings_spark.scoring.streaming import stream
from seedlings_spark.scoring.tasks import CONTENTS, confidence, takes_int8

__all__ = [
    "CONTENTS",
    "ScoreRun",
    "confidence",
    "drift_table",
    "latest",
    "predicted_species",
    "printed",
    "probabilities",
    "profile_of_corpus",
    "profile_of_images",
    "profile_of_pixels",
    "register",
    "require_profile",
    "score",
    "short_summary",
    "stream",
    "summary",
    "takes_int8",
]
