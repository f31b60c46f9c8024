"""Texts of any characters for Hypothesis, whose own strategy reads the tables of Unicode first, for seconds."""

from hypothesis import strategies as st

CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))


def texts(without: str = "", min_size: int = 0) -> st.SearchStrategy[str]:
    """Texts that UTF-8 can carry, without some characters."""
    codes = st.one_of(st.integers(0, 0x7F), st.integers(0, 0xD7FF), st.integers(0xE000, 0x10FFFF))
    characters = codes.map(chr).filter(lambda each: each not in without)
    return st.lists(characters, min_size=min_size).map("".join)
