"""Which folders a wheel has: `jobs` and `conf` inside of the package, so that it is usable without the repository."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["seedlings_spark*"]), "seedlings_spark.jobs", "seedlings_spark.conf"],
    package_dir={"seedlings_spark.jobs": "jobs", "seedlings_spark.conf": "conf"},
)
