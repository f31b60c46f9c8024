"""Answer for model versions over HTTP, on this machine."""

import sys

from seedlings_spark import cli, workflow
from seedlings_spark.config import ServeOptions


def main(options: ServeOptions) -> None:
    workflow.serve(options)


if __name__ == "__main__":
    sys.exit(cli.run_here("serve", ServeOptions, main))
