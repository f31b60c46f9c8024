"""The README's commands, for tests that run them as they stand there."""

import re
from collections.abc import Mapping
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def commands(heading: str, instead: Mapping[str, str], language: str = "sh") -> list[str]:
    """The blocks of commands in a section of the README.

    Args:
        heading: Of the section.
        instead: What to put in the place of names and numbers that are not this machine's; each has to occur.
        language: Of the blocks.
    """
    (section,) = re.findall(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README.read_text(encoding="utf-8"), re.S | re.M
    )
    fenced: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.S | re.M)
    blocks = [content for of_block, content in fenced if of_block == language]
    for old, new in instead.items():
        assert any(old in block for block in blocks), f"{old!r} is not in {heading!r}"
        blocks = [block.replace(old, new) for block in blocks]
    return blocks
