"""From image files to a corpus: a table of pixels, a table of rejects, a manifest that adds up.

Files are decoded once, into a table beside the corpus; what needs to see all of them (conflicting labels, exact
shares, a sample) then works on hashes and names alone. The manifest is written last: a corpus without one is
half-written, and no job reads it.
"""

from seedlings_spark.corpus.comparison import Difference, changed, diff
from seedlings_spark.corpus.layout import TableFormat, look_alikes
from seedlings_spark.corpus.manifest import Corpus, corpus_fingerprint, load, summary
from seedlings_spark.corpus.preparation import Selection, left_behind, prepare
from seedlings_spark.corpus.splits import SplitRule

__all__ = [
    "Corpus",
    "Difference",
    "Selection",
    "SplitRule",
    "TableFormat",
    "changed",
    "corpus_fingerprint",
    "diff",
    "left_behind",
    "load",
    "look_alikes",
    "prepare",
    "summary",
]
