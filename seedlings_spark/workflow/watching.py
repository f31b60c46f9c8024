"""From the runs of an output to a page that shows their drift over time."""

import json

from seedlings_spark import config, files
from seedlings_spark.config import WatchOptions
from seedlings_spark.errors import InputError
from seedlings_spark.reports import watching
from seedlings_spark.scoring.runs import Runs

METRICS, PAGE = "metrics.json", "index.html"


def watch(options: WatchOptions) -> watching.Watched:
    """Look at the drift of all runs of an output, and write a page.

    Args:
        options: Those of the job `watch`.

    Raises:
        InputError: There is no run, or one's manifest cannot be read.
    """
    options = config.qualified(options)
    runs = Runs(options.scores)
    manifests = [runs.manifest(name) for name in runs.in_order()]
    if not manifests:
        raise InputError(
            f"no run in {options.scores}",
            "the folder that score was given as --output",
            "Score something first, or correct --scores",
        )
    found = watching.watched(manifests, options.max_drift)
    files.make_directory(options.report)
    files.write_text(files.join(options.report, PAGE), found.page(options.scores))
    content = json.dumps({"scores": options.scores, **found.to_dict()}, indent=2, allow_nan=False)
    files.write_text(files.join(options.report, METRICS), content + "\n")
    return found
