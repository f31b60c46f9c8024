"""TensorFlow in one thread, as a worker has it."""

from typing import Any

import pytest

from seedlings_spark import runtime


@pytest.fixture(scope="session", autouse=True)
def tensorflow() -> Any:
    return runtime.start(1)
