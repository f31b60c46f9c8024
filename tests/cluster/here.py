"""Jobs in this process, on the session of the tests: what those of a cluster are compared with."""

from pyspark.sql import SparkSession

from seedlings_spark import cli, config, workflow


def run_here(spark: SparkSession, job: str, *arguments: str) -> None:
    """Do what a job does on this machine.

    Args:
        spark: The session.
        job: Its name.
        arguments: As on its command line.
    """
    options, _ = cli.read_arguments(job, config.JOBS[job], arguments)
    getattr(workflow, job)(spark, options)
