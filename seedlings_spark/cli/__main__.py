"""Look at a job's arguments before Spark starts: `python -m seedlings_spark.cli JOB [options]`."""

import sys

from seedlings_spark import cli

if __name__ == "__main__":
    sys.exit(cli.check(sys.argv[1:]))
