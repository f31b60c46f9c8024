"""The model card of a version; and what lies beside every export: its card, the classes, the resizing rule as code."""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seedlings_spark import choices, display, reproducibility
from seedlings_spark.exports.source import Source
from seedlings_spark.models import decisions, engines
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


def of_version(version: ModelVersion, evaluation: Mapping[str, Any] | None) -> str:
    """The model card of a version, as Markdown (Mitchell et al. 2019, "Model cards for model reporting").

    Args:
        version: The version.
        evaluation: What `evaluate` has found of it on a test split; None where it has not been called.
    """
    source = f"{_plain(version.name)} {version.version}"
    height, width = version.image_size
    lines = [
        f"# {source}",
        f"An image classifier: of a picture of {height} x {width} pixels the probabilities of"
        f" {len(version.classes):,} classes. Made by seedlings_spark.",
        "## Intended use",
        "Whom it is for, what is done with its answers, and what it must not be used for: its owner's to write here.",
        "## Data",
        _table(_data(version.manifest)),
        "Where the pictures were taken, by whom, and under which licence: its owner's to write here.",
        "## Training",
        _table(_trained(version.manifest)),
        "## Metrics",
        *_metrics(evaluation),
        "## Confidence",
        _confidence(version.manifest),
        "## Limits",
        *(f"- {each}" for each in _limits(version.manifest, evaluation)),
        "## Licence",
        _licence(version.manifest),
    ]
    return "\n\n".join(lines).replace("\n\n- ", "\n- ").replace("## Limits\n-", "## Limits\n\n-") + "\n"


def _data(manifest: Mapping[str, Any]) -> list[tuple[str, object]]:
    corpus = manifest.get("corpus") or {}
    if not corpus:
        return [("corpus", "not known"), ("imported from", manifest.get("imported_from", "elsewhere"))]
    images = ", ".join(f"{count:,} {split}" for split, count in corpus["images_of_split"].items())
    return [
        ("corpus", corpus.get("path", "not known")),
        ("pictures", images),
        ("fingerprint", corpus.get("fingerprint", "not known")),
        ("splits", corpus.get("split_policy", "not known")),
        ("what is not square", manifest.get("aspect", "crop")),
    ]


def _trained(manifest: Mapping[str, Any]) -> list[tuple[str, object]]:
    options, kept = manifest.get("options") or {}, manifest.get("kept") or {}
    names = ["network", "weights", "fine_tune", "epochs", "batch_size", "num_workers", "mode", "optimizer"]
    names += ["learning_rate", "schedule", "augment", "seed"]
    rows = [
        (name.replace("_", " "), options[name]) for name in names if options.get(name) not in (None, "", [])
    ]
    if kept:
        rows.append(("published epoch", f"{kept.get('epoch')}, the {kept.get('keep')} one"))
    rows.append(("published", manifest.get("created", "not known")))
    rows.append(("precision", manifest.get("precision", "float32")))
    return [*rows, *(manifest.get("versions") or {}).items()]


def _metrics(evaluation: Mapping[str, Any] | None) -> list[str]:
    if not evaluation:
        return ["Not measured on a test split: `evaluate` does so, and leaves its numbers in the store."]
    low, high = evaluation["accuracy_interval"]
    numbers: list[tuple[str, object]] = [
        (
            "corpus",
            f"{evaluation.get('corpus')}, its split test, {evaluation.get('num_images', 0):,} pictures",
        ),
        ("accuracy", f"{evaluation['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})"),
    ]
    named = [("macro F1", "macro_f1"), ("calibration error", "calibration_error")]
    numbers += [(name, f"{evaluation[key]:.4f}") for name, key in named if _is_number(evaluation.get(key))]
    rows = [
        f"| {_plain(each['species'])} | {each['support']:,} | {each['precision']:.3f} | {each['recall']:.3f} |"
        f" {each['f1']:.3f} |"
        for each in evaluation.get("per_species", ())
    ]
    head = "| class | pictures | precision | recall | F1 |\n| --- | ---: | ---: | ---: | ---: |"
    return [_table(numbers), "\n".join([head, *rows])]


def _confidence(manifest: Mapping[str, Any]) -> str:
    calibration = manifest.get("calibration") or {}
    words = "Its probabilities are as trained, not calibrated."
    if "temperature" in calibration:
        words = (
            f"Its probabilities are calibrated by a temperature of {calibration['temperature']:.3f}, fitted on"
            f" {calibration['images']:,} validation pictures."
        )
    decided = decisions.Decisions.of(manifest)
    return words + (f" Its decisions: {decided.words}." if decided.images else "")


# Of so few pictures an accuracy is known to no better than ten points or so.
_FEW = 50


def _limits(manifest: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    found = [
        "Its numbers hold for pictures that are taken as those above were; of other cameras and fields nobody knows."
    ]
    if not decisions.Decisions.of(manifest).max_unknown:
        found.append("Every picture gets one of the classes, also one that shows none of them.")
    species = [each for each in (evaluation or {}).get("per_species", ()) if each["support"]]
    worst = sorted(species, key=lambda each: each["recall"])[:3]
    if worst:
        shown = ", ".join(f"{_plain(each['species'])} ({each['recall']:.3f})" for each in worst)
        found.append(f"Classes that it misses most often, with the share that it finds: {shown}.")
    if robustness := (evaluation or {}).get("robustness"):
        found.append(_robustness(robustness))
    if few := [each for each in species if each["support"] < _FEW]:
        found.append(
            f"Of {len(few):,} of {len(species):,} classes the test split has less than {_FEW} pictures."
        )
    return found


def _robustness(found: Mapping[str, Any]) -> str:
    broken = [
        f"{_plain(name)} of {each['levels'][each['breaks_at'] - 1]:g} ({_plain(each['unit'])})"
        for name, each in found["kinds"].items()
        if each["breaks_at"]
    ]
    words = f"On corrupted pictures its accuracy is {found['mean_corruption_accuracy']:.4f} in the mean."
    return words + (
        f" A tenth of its right answers or more is lost from: {', '.join(broken)}." if broken else ""
    )


def _licence(manifest: Mapping[str, Any]) -> str:
    options = manifest.get("options") or {}
    weights, network = str(options.get("weights", choices.NO_WEIGHTS)), str(options.get("network", ""))
    if weights == choices.NO_WEIGHTS and not network.endswith(choices.NETWORK_FILES) and network:
        origin = "It was trained from nothing: no weights of others are in it."
    elif weights == choices.IMAGENET and network in choices.LITE_NETWORKS:
        origin = f"It began with the weights of {network} by Google, which are under the Apache License 2.0."
    elif weights == choices.IMAGENET:
        origin = f"It began with weights of {_plain(network)} that Keras offers: keras.io says under which licence."
    else:
        origin = "It began with weights of others, whose licence its owner has to name here."
    return f"{origin} The licence of the pictures, and of this model: its owner's to write here."


def _table(rows: Sequence[tuple[str, object]]) -> str:
    lines = [f"| {_plain(name)} | {_plain(_in_words(value))} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _in_words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


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
