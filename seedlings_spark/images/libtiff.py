"""What libtiff has to say about a file: it would else write it to the process's standard error, past Python.

Pillow's libtiff tells of all that is wrong through two functions of the process, which are set here, once. What it says
reaches the thread that decodes; a file is then rejected in libtiff's own words.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

from PIL import _imaging

_MAX_MESSAGES = 20
_MESSAGE_LENGTH = 300
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_of_thread = threading.local()


class Messages(list[str]):
    """What libtiff has said while one file was decoded, errors and warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []


@contextlib.contextmanager
def messages() -> Iterator[Messages]:
    """Collect what libtiff says in this thread."""
    found = _of_thread.messages = Messages()
    try:
        yield found
    finally:
        _of_thread.messages = None


def _keep(is_error: bool, module: bytes | None, format_: bytes | None, values: int | None) -> None:
    found: Messages | None = getattr(_of_thread, "messages", None)
    if found is None or len(found) >= _MAX_MESSAGES:
        return
    text = ctypes.create_string_buffer(_MESSAGE_LENGTH)
    _vsnprintf(text, _MESSAGE_LENGTH, format_ or b"", values)
    said = ": ".join(part.decode("utf-8", "replace") for part in (module, text.value) if part)
    found.append(said)
    if is_error:
        found.errors.append(said)


_on_error = _HANDLER(lambda *of_libtiff: _keep(True, *of_libtiff))
_on_warning = _HANDLER(lambda *of_libtiff: _keep(False, *of_libtiff))
try:
    # By Pillow's own module, so that it is the libtiff that Pillow calls and not another one in the process. Of the
    # third argument, a va_list, all systems that we run on (x86-64, ARM64) pass an address.
    _library = ctypes.CDLL(_imaging.__file__)
    _vsnprintf = ctypes.CDLL(None).vsnprintf
    _vsnprintf.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p)
    for _setter, _function in (("TIFFSetErrorHandler", _on_error), ("TIFFSetWarningHandler", _on_warning)):
        getattr(_library, _setter).argtypes = (_HANDLER,)
        getattr(_library, _setter)(_function)
except (OSError, AttributeError):  # built into Pillow without names: it goes on telling standard error
    pass
