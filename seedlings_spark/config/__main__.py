"""Prints the content of `conf/seedlings.toml`."""

from seedlings_spark import config

if __name__ == "__main__":
    print(config.as_toml(), end="")
