"""Look for what is in the way of the other jobs."""

import sys

from pyspark.sql import SparkSession

from seedlings_spark import cli
from seedlings_spark.cluster import doctor, session
from seedlings_spark.config import DoctorOptions


def main(spark: SparkSession, options: DoctorOptions) -> int:
    checks = doctor.examine(
        spark,
        output=options.output,
        num_workers=options.num_workers,
        ports=session.ports(options.server_port),
        worker_ports=session.ports(options.worker_port, "worker_port"),
    )
    print(doctor.table(checks))
    return cli.DONE if doctor.is_fit(checks) else cli.FAILED


if __name__ == "__main__":
    sys.exit(cli.run("doctor", DoctorOptions, main))
