"""The commands in README and docs, for tests that run them as they stand there."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = "README.md"
PAGES = [README, *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Args:
        page: Path of the file in the repository.
        heading: The nearest one above.
        language: As the first fence says.
        content: The lines between.
    """

    page: str
    heading: str
    language: str
    content: str


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    """All blocks of a page, in order."""
    heading, fence, lines = "", "", list[str]()
    for line in text(page).splitlines(keepends=True):
        if line.startswith("```"):
            if fence:
                yield Block(page, heading, fence.strip("`\n"), "".join(lines))
            fence, lines = ("" if fence else line), []
        elif fence:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.strip("# \n")
    assert not fence, f"{page} has a block without an end"


def command(page: str, heading: str, instead: Mapping[str, str], language: str = "sh") -> str:
    """The one block of commands below a heading.

    Args:
        page: Path of the file in the repository.
        heading: Right above the block.
        instead: What to put in the place of names and numbers that are not this machine's; each has to occur.
        language: Language of the block.
    """
    (content,) = (
        block.content for block in blocks(page) if (block.heading, block.language) == (heading, language)
    )
    for old, new in instead.items():
        assert old in content, f"{old!r} is not in {heading!r} of {page}"
        content = content.replace(old, new)
    return content


def jobs(page: str, heading: str) -> dict[str, list[str]]:
    """The lines of a block of commands of the script, by their jobs: the words after the script's name."""
    lines = (line.split() for line in command(page, heading, {}).splitlines())
    return {words[1]: words[1:] for words in lines if words[0] == "./spark-submit.sh"}


def links(page: str) -> list[str]:
    """Where a page links to in the repository, relative to it."""
    return re.findall(r"(?<=\]\()(?!\w+:)([^)\s]+)", text(page))
