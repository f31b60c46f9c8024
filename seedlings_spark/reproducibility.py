"""Seeds derived by name, and the record of what a result depends on.

Each use of randomness asks for its own seed by name and numbers: `seed_for(7, "shuffle", epoch, rank)`.
Adding a use therefore changes no other one, and no global generator is ever touched.
"""

import contextlib
import hashlib
import os
import platform
import random
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

# The packages whose version can change a trained weight or a decoded pixel.
_PACKAGES = ("pyspark", "elephas", "tensorflow", "keras", "numpy", "pyarrow", "pillow")
# Other names of the same package.
_ALSO = {"tensorflow": "tensorflow-cpu"}
_CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def seed_for(seed: int, name: str, *numbers: int) -> int:
    """A seed for one use of randomness.

    Args:
        seed: The run's seed.
        name: What it is for, such as "shuffle".
        numbers: Where in the run, such as epoch, step and rank.

    Returns:
        An integer from 0 to 2**31 - 1, which every library takes as a seed.
    """
    text = " ".join([str(seed), name, *(str(number) for number in numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


_drawing = threading.RLock()


@contextlib.contextmanager
def seeded_initializers(seed: int) -> Iterator[None]:
    """Make Keras draw the initial weights of networks built inside from `seed`.

    A Keras 3 initializer or seed generator without a seed of its own draws one from Python's global
    generator (keras/src/random/seed_generator.py, `make_default_seed`), so that one is set here, and given
    back as it was. Threads that train at once, as a CrossValidator's do, wait for each other.
    """
    with _drawing:
        state = random.getstate()
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


def cpu_model() -> str:
    """The processor's name, as /proc/cpuinfo or the platform gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Those of the instruction sets that change results or speed which this processor has."""
    flags = _cpuinfo("flags").split()
    return tuple(feature for feature in _CPU_FEATURES if feature in flags)


def package_versions() -> dict[str, str]:
    """Name -> version of Python and of every package that a result depends on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        if version := _installed(package) or _installed(_ALSO.get(package, "")):
            versions[package] = version
        elif package in sys.modules:  # Spark's own copy on a cluster is not installed
            versions[package] = str(getattr(sys.modules[package], "__version__", "unknown"))
    return versions


def _installed(package: str) -> str:
    """The version of a package; "" if it is not installed."""
    try:
        return metadata.version(package) if package else ""
    except metadata.PackageNotFoundError:
        return ""


def environment(threads: int) -> dict[str, object]:
    """What the bits of a trained weight depend on besides corpus and options.

    Args:
        threads: Threads that TensorFlow uses within an operation in this process.
    """
    return {
        "cpu": cpu_model(),
        "cpu_features": list(cpu_features()),
        "threads": threads,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "versions": package_versions(),
    }


def differences(environments: Sequence[Mapping[str, object]]) -> list[str]:
    """In what the workers' environments differ, one line a key; empty when all are equal."""
    lines = []
    for key in sorted({key for environment in environments for key in environment}):
        values = [environment.get(key) for environment in environments]
        if any(value != values[0] for value in values):
            distinct = list(dict.fromkeys(str(value) for value in values))
            lines.append(f"{key}: {' / '.join(distinct)}")
    return lines


def _cpuinfo(key: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a virtual file, not a path of ours
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        pass
    return ""
