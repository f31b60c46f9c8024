"""A locale of UTF-8 for the JVM, which reads arguments and names of files as the locale says.

Without one (cron, `env -i`) it makes of an `ö` in an argument two `?`, which match other names.
"""

import contextlib
import locale
import subprocess
from collections.abc import Iterator

# There without being installed, in this order.
_USUAL = ("C.UTF-8", "en_US.UTF-8")


def for_utf8() -> str | None:
    """What `LC_ALL` has to be; None where this process has a locale of UTF-8 already."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        if _is_utf8(""):
            return None
        return next(filter(_is_utf8, _candidates()), _USUAL[0])
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def _candidates() -> Iterator[str]:
    yield from _USUAL
    with contextlib.suppress(OSError):  # a machine without the program
        listed = subprocess.run(
            ["locale", "-a"], capture_output=True, text=True, errors="replace", check=False
        )
        yield from (name for name in listed.stdout.split("\n") if name.lower().endswith(("utf-8", "utf8")))


def _is_utf8(name: str) -> bool:
    """Whether there is such a locale and its letters are UTF-8; "" is the one that the environment names."""
    try:
        locale.setlocale(locale.LC_CTYPE, name)
    except locale.Error:
        return False
    return locale.nl_langinfo(locale.CODESET) == "UTF-8"
