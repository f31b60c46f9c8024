"""The versions that a server has loaded, and what it is asked for by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seedlings_spark import display, files
from seedlings_spark.errors import OptionError, StoreError
from seedlings_spark.exports import web
from seedlings_spark.models import engines
from seedlings_spark.models.store import CURRENT, ModelStore, ModelVersion, names


@dataclass(frozen=True)
class Served:
    """One version, loaded.

    Args:
        version: The version.
        engine: Its network.
    """

    version: ModelVersion
    engine: engines.OnnxRuntime

    @property
    def name(self) -> str:
        """Of the model."""
        return self.version.name

    @property
    def about(self) -> Mapping[str, object]:
        """What a page has to know of it."""
        return web.about(self.version)


@dataclass(frozen=True)
class Catalogue:
    """All that is served, in the order that was asked for.

    Args:
        served: The versions; at least one.
    """

    served: Sequence[Served]

    def find(self, name: str, version: str = "") -> Served | None:
        """A version by its model's name and its own (`v0001`) or its number (`1`); "" for the first of the model."""
        for each in self.served:
            if each.name == name and version in ("", each.version.version, str(each.version.number)):
                return each
        return None

    def of(self, name: str) -> list[Served]:
        """The versions of a model."""
        return [each for each in self.served if each.name == name]


def load(directory: str, asked: Sequence[str], threads: int, require_signature: str = "") -> Catalogue:
    """Load versions from a store.

    Args:
        directory: The store.
        asked: Each a model, which means its current version, or `MODEL/VERSION`; none for the current version of each
            model that has one.
        threads: Threads of a forward pass.
        require_signature: As for `ModelStore`.

    Raises:
        StoreError: There is no such version, it is not as it was published, or has no ONNX form.
        OptionError: A version is asked for twice.
    """
    if not asked:
        asked = [name for name in names(directory) if ModelStore(directory, name).current()]
        if not asked:
            raise StoreError(
                f"no current version in {directory}", "at least one", "Promote one by `models promote`"
            )
    served: list[Served] = []
    for each in asked:
        name, _, number = each.partition("/")
        version = ModelStore(directory, name, require_signature).verify(number or CURRENT)
        version.require_one_species("serve")
        if any(version == known.version for known in served):
            raise OptionError(
                f"--models with {display.shown(each)} twice", "each version once", "Leave one out"
            )
        if not version.has_onnx:
            raise StoreError(
                f"{version.name} {version.version}, which has no network.onnx",
                "a version that ONNX Runtime can compute",
                f"Make one by `models upgrade --name {version.name} --model-version {version.version}`",
            )
        version.image_size  # noqa: B018 - raises for a network that takes no images
        engine = engines.OnnxRuntime(files.read_bytes(version.onnx_path), threads)
        served.append(Served(version, engine))
    return Catalogue(served)
