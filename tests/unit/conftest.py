"""Folders in memory, where there is some: these tests are of what is written, and a disk may take its time for it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")
_LEAST_BYTES = 1 << 30


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In place of pytest's own."""
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < _LEAST_BYTES:
        yield tmp_path_factory.mktemp("unit")
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="seedlings-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
