"""Network files from elsewhere: whatever they hold, nothing outside of them is read, written or run."""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from seedlings_spark.errors import NetworkError
from seedlings_spark.models import networks, pretrained

WEIGHTS, CONFIG = "model.weights.h5", "config.json"
NETWORK = keras.Sequential(
    [keras.Input((4,)), layers.Dense(3, name="dense"), layers.Dense(2, name="dense_1")]
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    NETWORK.save(tmp_path / "network.keras")
    return tmp_path / "network.keras"


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(file: Path, content: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def kernel(weights: "h5py.File") -> tuple[Any, str]:
    """The group and the name of the kernel of the one layer."""
    found: list[str] = []
    weights.visititems(
        lambda name, item: found.append(name) if getattr(item, "shape", None) == (4, 3) else None
    )
    return weights[found[0]].parent, found[0].rpartition("/")[2]


def _external_link(weights: "h5py.File", other: Path) -> None:
    group, name = kernel(weights)
    del group[name]
    group[name] = h5py.ExternalLink(str(other), "/secret")


def _soft_link(weights: "h5py.File", other: Path) -> None:
    group, name = kernel(weights)
    group.create_dataset("elsewhere", data=np.ones((4, 3), "float32"))
    path = f"{group.name}/elsewhere"
    del group[name]
    group[name] = h5py.SoftLink(path)


def _external_group(weights: "h5py.File", other: Path) -> None:
    group = kernel(weights)[0]
    parent, name = group.parent, group.name.rpartition("/")[2]
    del parent[name]
    parent[name] = h5py.ExternalLink(str(other), "/group")


def _external_storage(weights: "h5py.File", other: Path) -> None:
    group, name = kernel(weights)
    del group[name]
    group.create_dataset(name, (4, 3), "float32", external=[(str(other), 0, h5py.h5f.UNLIMITED)])


def _virtual(weights: "h5py.File", other: Path) -> None:
    group, name = kernel(weights)
    del group[name]
    layout = h5py.VirtualLayout((4, 3), "float32")
    layout[:] = h5py.VirtualSource(str(other), "/secret", shape=(4, 3))
    group.create_virtual_dataset(name, layout)


def _bomb(weights: "h5py.File", other: Path) -> None:
    group, name = kernel(weights)
    del group[name]
    group.create_dataset(name, (1 << 20, 1 << 20), "float32", chunks=(1024, 1024), compression="gzip")


@pytest.mark.parametrize(
    "change", [_external_link, _external_group, _soft_link, _external_storage, _virtual, _bomb]
)
def test_weights_that_lie_elsewhere_are_refused(
    file: Path, tmp_path: Path, change: Callable[["h5py.File", Path], None]
) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as secret:
        secret["secret"] = np.full((4, 3), 7, "float32")
        for kernel_name, bias_name in (("0", "1"), ("kernel", "bias")):
            secret[f"group/{kernel_name}"] = np.full((4, 3), 7, "float32")
            secret[f"group/{bias_name}"] = np.full(3, 7, "float32")
    content = members(file)
    stream = io.BytesIO(content[WEIGHTS])
    with h5py.File(stream, "r+") as weights:
        change(weights, other)
    rewrite(file, {**content, WEIGHTS: stream.getvalue()})
    older = tmp_path / "older.h5"
    NETWORK.save(older)
    with h5py.File(older, "r+") as weights:
        change(weights, other)
    for read in (networks.load, partial(pretrained.take, NETWORK)):
        with pytest.raises(NetworkError):
            read(file)
    with pytest.raises(NetworkError):
        pretrained.take(NETWORK, older)


def _layer(class_name: str, module: str = "keras.layers", **config: Any) -> dict[str, Any]:
    return {
        "class_name": class_name,
        "module": module,
        "registered_name": None,
        "config": {"name": "x", **config},
    }


@pytest.mark.parametrize(
    "layer",
    [
        _layer("Lambda", function={"class_name": "__lambda__", "config": {"value": "4wAAAA=="}}),
        _layer("TFSMLayer", filepath="/tmp/saved", call_endpoint="serve"),
        _layer("TFSMLayer", "keras.src.export.tfsm_layer", filepath="/tmp/saved", call_endpoint="serve"),
        _layer("TorchModuleWrapper", module={"class_name": "__bytes__", "config": {"value": "x"}}),
        _layer("StringLookup", vocabulary="SECRET"),
        _layer("IntegerLookup", vocabulary="SECRET"),
        _layer("TextVectorization", vocabulary="SECRET"),
        _layer("Dense", units=1, activation={"class_name": "function", "module": "os", "config": "system"}),
        _layer(
            "Dense",
            units=1,
            activation={"class_name": "function", "module": "keras.utils", "config": "get_file"},
        ),
        _layer("Popen", "subprocess", args=["touch", "SECRET"]),
        _layer("load_model", "keras.saving", filepath="SECRET"),
        _layer("Lock", "seedlings_spark.lock", folder="SECRET", owner="x"),
        _layer("RunRecord", "seedlings_spark.workflow.pipeline", path="SECRET"),
    ],
)
def test_a_layer_that_reads_or_runs_something_is_refused(
    file: Path, tmp_path: Path, layer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a\nb\n")
    content = members(file)
    config = json.loads(content[CONFIG])
    config["config"]["layers"].insert(1, json.loads(json.dumps(layer).replace("SECRET", str(secret))))
    rewrite(file, {**content, CONFIG: json.dumps(config).encode()})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(NetworkError):
        networks.load(file)
    assert secret.read_text() == "a\nb\n" and sorted(tmp_path.iterdir()) == before


def test_members_with_paths_write_nothing_outside(file: Path, tmp_path: Path) -> None:
    content = members(file)
    rewrite(
        file, {**content, "../outside": b"x", "/tmp/seedlings-outside": b"x", "assets/../../outside": b"x"}
    )
    before = sorted(tmp_path.parent.iterdir())
    with contextlib.suppress(NetworkError):
        networks.load(file)
    assert sorted(tmp_path.parent.iterdir()) == before and not Path("/tmp/seedlings-outside").exists()
