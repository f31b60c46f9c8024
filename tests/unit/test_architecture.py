"""The house as the map draws it: who may import whom, and which library has which door."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import seedlings_spark

PACKAGE = Path(seedlings_spark.__file__).parent
ROOT = PACKAGE.parent

# A module may import those of its own and of earlier groups only.
GROUPS = [
    ["errors", "choices", "kinds"],
    ["display", "schema", "fingerprint", "reproducibility", "progress"],
    # files
    ["files.paths"],
    ["files.local"],
    ["files.connectors", "files.stores"],
    ["files.hadoop"],
    ["files"],
    # config
    ["config.suggestions"],
    ["config.options"],
    ["config.jobs"],
    ["config"],
    ["config.__main__"],
    ["lock"],
    # cluster
    ["cluster", "cluster.environment", "cluster.runtime"],
    ["cluster.connect"],
    ["cluster.session"],
    ["cluster.doctor"],
    # images
    ["images.png", "images.gif", "images.jpeg", "images.tiff", "images.bmp", "images.libtiff"],
    ["images.perceptual", "images.corruptions"],
    ["images"],
    # corpus
    ["corpus.systems", "corpus.tables", "corpus.listings", "corpus.synthetic", "corpus.contents"],
    ["corpus.remote"],
    ["corpus.archives"],
    ["corpus.decoding", "corpus.references"],
    ["corpus.layout", "corpus.splits", "corpus.manifest"],
    ["corpus.near_duplicates", "corpus.comparison", "corpus.fixes"],
    ["corpus.preparation"],
    ["corpus.erasure"],
    ["corpus"],
    ["problems"],
    # training
    ["training.weights"],
    ["training.wire"],
    [
        "training.server",
        "training.client",
        "training.shard",
        "training.network",
        "training.optimizer",
        "training.capacity",
        "training.progress",
        "training.record",
    ],
    ["training.tree", "training.rules", "training.epochs", "training.curriculum"],
    ["training.peers", "training.owned", "training.dealing"],
    ["training.messages"],
    ["training.master", "training.mixing"],
    ["training.worker", "training.checkpoint"],
    ["training.launcher", "training.resume"],
    ["training.stage", "training.coordination"],
    ["training.updates"],
    ["training.synchronous", "training.asynchronous"],
    ["training.engine"],
    ["training"],
    # models
    ["models", "models.backbones", "models.decisions"],
    ["models.pretrained"],
    ["models.networks", "models.engines", "models.stages", "models.store", "models.saliency"],
    ["models.prediction", "models.export", "models.attacks"],
    # exports
    ["exports.source"],
    ["exports.card"],
    [
        "exports.litert",
        "exports.onnx",
        "exports.openvino",
        "exports.coreml",
        "exports.savedmodel",
        "exports.web",
    ],
    ["exports.mlflow", "exports.triton"],
    ["exports"],
    # serving
    ["serving", "serving.requests", "serving.versions", "serving.batches"],
    ["serving.server"],
    # estimator
    ["estimator.stock"],
    ["estimator.columns", "estimator.features", "estimator.params"],
    ["estimator.rows", "estimator.model"],
    ["estimator.estimator"],
    ["estimator.elephas", "estimator"],
    ["elephas", "features"],
    # reports
    ["reports", "reports.drift", "reports.evaluation"],
    ["reports.multilabel", "reports.numbers"],
    [
        "reports.certainty",
        "reports.paired",
        "reports.promised",
        "reports.robustness",
        "reports.projector",
        "reports.labels",
        "reports.gallery",
        "reports.fitting",
    ],
    ["reports.slices"],
    ["reports.plots", "reports.findings"],
    ["reports.html", "reports.search"],
    ["reports.page", "reports.feedback", "reports.exploration", "reports.watching"],
    # scoring
    ["scoring.sources", "scoring.runs", "scoring.progress"],
    ["scoring.ledger", "scoring.review", "scoring.tasks"],
    ["scoring.profile", "scoring.sql", "scoring.shadow"],
    ["scoring.erasure"],
    ["scoring.run"],
    ["scoring.printing", "scoring.streaming"],
    ["scoring"],
    # workflow
    ["workflow.runs", "workflow.events", "workflow.quickstart", "workflow.calibration", "workflow.space"],
    ["workflow.tracking"],
    ["workflow.pipeline", "workflow.predicting", "workflow.clean", "workflow.exporting", "workflow.serving"],
    [
        "workflow.publication",
        "workflow.projecting",
        "workflow.transfer",
        "workflow.folds",
        "workflow.data_curve",
        "workflow.curriculum",
    ],
    ["workflow.late_labels", "workflow.exploring", "workflow.watching"],
    ["workflow.promoting"],
    ["workflow.jobs"],
    ["workflow.search", "workflow.reproduction", "workflow.featurizing", "workflow.forgetting"],
    ["workflow.neighbours"],
    ["workflow"],
    # benchmark
    ["benchmark", "benchmark.machines"],
    ["benchmark.train"],
    ["benchmark.score", "benchmark.scale", "benchmark.inference"],
    ["benchmark.narrow"],
    # cli
    ["cli.preflight"],
    ["cli"],
    ["cli.locales", "cli.invocation", "cli.installation", "cli.relay"],
    ["cli.classes"],
    ["cli.submission"],
    ["cli.launch"],
]

# Library -> the only modules that may import it.
DOORS = {
    "PIL": {"images", "images.corruptions", "images.libtiff", "images.perceptual"},
    "imagehash": {"images.perceptual"},
    "imagecodecs": {"images"},
    "simplejpeg": {"images"},
    "matplotlib": {"reports.plots"},
    "jinja2": {"reports.html"},
    "elephas": {"estimator.stock"},
    "socket": {"training.wire", "training.server", "training.client", "cluster.doctor", "serving.server"},
    "starlette": {"serving.server"},
    "uvicorn": {"serving.server"},
    "prometheus_client": {"serving.server"},
    "ssl": {"training.wire"},
    "cryptography": {"training.wire", "models.store"},
    "tensorflow": {
        "cluster.runtime",
        "training.master",
        "training.launcher",
        "models.export",
        "models.saliency",
        "workflow.events",
        "benchmark.train",
        "benchmark.score",
    },
    "art": {"models.attacks"},
    "onnxruntime": {"models.engines"},
    "openvino": {"models.engines"},
    "ai_edge_litert": {"exports.litert"},
    "flatbuffers": {"exports.litert"},
    "coremltools": {"exports.coreml"},
    "mlflow": {"exports.mlflow"},
    "onnx": {"models.export", "exports.onnx"},
    "tf2onnx": {"models.export"},
    "keras": {
        "cluster.runtime",
        "models.backbones",
        "models.pretrained",
        "models.networks",
        "models.engines",
        "models.export",
        "models.saliency",
        "models.attacks",
        "training.master",
        "training.network",
        "training.optimizer",
        "training.mixing",
        "training.owned",
        "problems",
        "training.worker",
        "training.resume",
        "training.engine",
        "estimator.params",
        "workflow.pipeline",
        "workflow.transfer",
        "benchmark.train",
        "benchmark.score",
        "benchmark.scale",
        "benchmark.narrow",
    },
}

# What a job without TensorFlow may reach: it costs 5 to 20 s in every Python process.
WITHOUT_TENSORFLOW = [
    "corpus",
    "corpus.decoding",
    "cli.launch",
    "config",
    "models.store",
    "models.prediction",
    "scoring",
    "scoring.sql",
    "serving.server",
    "cluster.session",
    "reports.evaluation",
    "reports.page",
    "reports.gallery",
    "corpus.synthetic",
    "benchmark.train",
    "benchmark.score",
    "benchmark.scale",
    "benchmark.narrow",
]


def _name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {_name(file): file for file in PACKAGE.rglob("*.py") if _name(file)}


class _Facts(NamedTuple):
    """What is asked of a file; its syntax tree would slow down every look for garbage of the tests that follow."""

    imports: tuple[str, ...]
    imports_at_top: tuple[str, ...]
    functions: tuple[tuple[str, int, int], ...]  # name, lines of code, parameters


@functools.cache
def _facts(file: Path) -> _Facts:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    return _Facts(
        tuple(_found_imports(file, nodes)),
        tuple(_found_imports(file, _top_level(tree))),
        tuple(_size(function, text.splitlines()) for function in functions),
    )


def _imports(file: Path, *, top_level_only: bool = False) -> tuple[str, ...]:
    """Full names of what a file imports."""
    facts = _facts(file)
    return facts.imports_at_top if top_level_only else facts.imports


def _found_imports(file: Path, nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _size(function: ast.FunctionDef, lines: Sequence[str]) -> tuple[str, int, int]:
    """Name, lines of code (without docstring, comments and empty lines) and parameters beside `self`."""
    of_docstring = range(0)
    if ast.get_docstring(function) is not None:
        of_docstring = range(function.body[0].lineno, (function.body[0].end_lineno or 0) + 1)
    numbers = range(function.lineno, (function.end_lineno or 0) + 1)
    code = [lines[number - 1].strip() for number in numbers if number not in of_docstring]
    names = [each.arg for each in (*function.args.args, *function.args.kwonlyargs)]
    return (
        function.name,
        sum(bool(line) and not line.startswith("#") for line in code),
        len([name for name in names if name not in ("self", "cls")]),
    )


def _top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run at import, also inside `with` and `if`."""
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


def _own(imported: str) -> str | None:
    """The module of ours that a full name means, or None."""
    parts = imported.split(".")
    if parts[0] != "seedlings_spark":
        return None
    for end in range(len(parts), 1, -1):
        name = ".".join(parts[1:end])
        if name in MODULES:
            return name
    return None


def test_every_module_is_on_the_map() -> None:
    grouped = [name for group in GROUPS for name in group]
    assert sorted(grouped) == sorted(MODULES)
    drawing = (seedlings_spark.__doc__ or "").partition("The map")[2]
    drawn = {line.split()[0] for line in drawing.splitlines() if line.startswith("    ")}
    assert drawn == {name.split(".")[-1] for name in MODULES}


def test_a_module_imports_only_its_own_and_earlier_groups() -> None:
    place = {module: number for number, group in enumerate(GROUPS) for module in group}
    later = [
        f"{name} imports {imported}, which comes later"
        for name, file in sorted(MODULES.items())
        for imported in map(_own, _imports(file))
        if imported is not None and imported != name and place[imported] > place[name]
    ]
    assert not later


@pytest.mark.parametrize("library", sorted(DOORS))
def test_a_library_is_imported_through_its_door_only(library: str) -> None:
    found = {
        name for name, file in MODULES.items() if any(i.split(".")[0] == library for i in _imports(file))
    }
    assert found == DOORS[library]


def test_the_package_itself_imports_neither_spark_nor_tensorflow() -> None:
    code = """
import sys
import seedlings_spark as ss
from seedlings_spark import workflow
assert set(ss.__all__) <= set(dir(ss))
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"pyspark", "tensorflow", "keras", "numpy", "elephas"}, loaded
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert _imports(PACKAGE / "training" / "__init__.py") == ()


@pytest.mark.parametrize("start", WITHOUT_TENSORFLOW)
def test_no_tensorflow_where_none_is_needed(start: str) -> None:
    seen, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported in _imports(MODULES[name], top_level_only=True):
            assert imported.split(".")[0] not in ("tensorflow", "keras", "elephas"), f"{start} reaches {name}"
            own = _own(imported)
            if own is not None:
                waiting.append(own)


def test_jobs_are_short_and_without_loops() -> None:
    for file in (ROOT / "jobs").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not any(isinstance(node, ast.For | ast.While) for node in ast.walk(ast.parse(text))), file.name
        assert len(text.splitlines()) <= 50, file.name


def test_functions_stay_short_and_take_few_parameters() -> None:
    """At most 50 lines of code, without docstring, comments and empty lines, and 8 parameters beside `self`."""
    too_much = []
    for file in PACKAGE.rglob("*.py"):
        for name, num_lines, num_parameters in _facts(file).functions:
            is_public_estimator = file.parent.name == "estimator"  # whose parameters are those of Spark ML
            if num_lines > 50 or (num_parameters > 8 and not is_public_estimator):
                too_much.append(f"{file.name}: {name}, {num_lines} lines, {num_parameters} parameters")
    assert too_much == []
