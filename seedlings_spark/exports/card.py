"""What lies beside every export: the model card, the names of the classes, and the resizing rule as code."""

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedlings_spark import display, reproducibility
from seedlings_spark.exports.source import Source
from seedlings_spark.models import engines
from seedlings_spark.models.store import ModelVersion

CARD, LABELS, PREPROCESSING = "MODEL_CARD.md", "labels.txt", "preprocessing.py"
_TEMPLATE = Path(__file__).with_name("preprocessing.txt")

_RULE = """\
`preprocessing.py` is this rule as code, and needs Pillow and NumPy only:

1. The picture is turned upright, as its EXIF orientation says.
2. It becomes RGB of 8 bits; what is transparent lies over black. No colour profile is applied.
3. {aspect}
4. It is resampled to {height} x {width} pixels by a triangle filter as wide as the reduction, which uses every pixel:
   `Image.Resampling.BILINEAR` in Pillow, `antialias=True` elsewhere. Plain bilinear sampling of four neighbours gives
   other pixels, and worse predictions.

The values stay 0 to 255: scaling and standardisation are in the network.
"""
_ASPECTS = {
    "crop": "The largest centred rectangle of {width} : {height} is cut out.",
    "pad": "The whole picture is used, centred between black bars.",
    "stretch": "The whole picture is used, squeezed to the target's shape.",
}


def write(source: Source, folder: Path, told: Mapping[str, Any], difference: str) -> None:
    """Write card, labels and code.

    Args:
        source: What was exported.
        folder: Where to.
        told: Of the format: `title`, `takes`, `gives`, `use`, `verified_by`.
        difference: How the export compares with Keras, in words.
    """
    version, classes = source.version, source.version.classes
    lines = [display.shown(each) for each in classes]
    (folder / LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / PREPROCESSING).write_text(preprocessing(version), encoding="utf-8")
    known = {
        "name": version.name,
        "number": version.number,
        "height": version.image_size[0],
        "width": version.image_size[1],
        "num_classes": len(classes),
    }
    packages = reproducibility.package_versions()
    verifiers = {each: packages.get(each) or engines.version(each) for each in _ENGINES}
    rule = _RULE.format(aspect=_ASPECTS[version.aspect].format(**known), **known)
    card = [
        f"# {version.name} {version.version}, {told['title']}\n",
        "An image classifier: for each picture a probability for each class. Every picture gets one of the classes"
        " below, also one that shows none of them.\n",
        f"## Input\n\n{told['takes'].format(**known)}.\n\n{rule}",
        f"## Output\n\n{told['gives'].format(**known)}.\n",
        f"## Use\n\n{told['use'].format(**known)}",
        f"## Verified\n\nBy {told['verified_by'].format(**verifiers)}, when this was made: {difference}\n",
        f"## Training\n\n{_training(source)}",
        "## Classes\n\n" + "\n".join(f"{number}. {_plain(name)}" for number, name in enumerate(lines)) + "\n",
    ]
    (folder / CARD).write_text("\n".join(card), encoding="utf-8")


_ENGINES = ("tensorflow", "onnxruntime", "openvino", "ai-edge-litert", "coremltools", "mlflow-skinny")


def preprocessing(version: ModelVersion) -> str:
    """The resizing rule of a version as a program of its own."""
    height, width = version.image_size
    known = {"name": version.name, "version": version.version, "aspect": version.aspect}
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(known, height=height, width=width)


def _training(source: Source) -> str:
    manifest = source.version.manifest
    rows = [("published", manifest.get("created"))]
    corpus = manifest.get("corpus", {})
    if corpus:
        images = ", ".join(f"{count:,} {split}" for split, count in corpus["images_of_split"].items())
        rows += [("corpus", f"{images}; fingerprint {corpus['fingerprint']}")]
    if imported := manifest.get("imported_from"):
        rows += [("imported from", imported)]
    if network := manifest.get("options", {}).get("network"):
        rows += [("network", network)]
    rows += [
        (name, f"{value:.4f}") for name, value in manifest.get("metrics", {}).items() if _is_number(value)
    ]
    table = "\n".join(f"| {_plain(name)} | {_plain(str(value))} |" for name, value in rows)
    return f"| | |\n| --- | --- |\n{table}\n\nWhat it may be used for, and by whom, is for its owner to add here.\n"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _plain(text: str) -> str:
    """A text that is no Markdown or HTML, whatever is in it."""
    return "".join(f"\\{each}" if each in "\\`*_[]<>|#" else each for each in display.shown(text))
