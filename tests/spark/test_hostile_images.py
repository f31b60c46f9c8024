"""Broken, hostile and unusual files, by the hundred: each ends as one prediction or as one reject with its reason.

Those that `tests.hostile` draws are always there; those of `bad_images_dev.tar`, for which the CSV beside it says
what Pillow does with each, where the shared data are. They all lie in one folder, which is scored and prepared once.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from pyspark.sql import SparkSession

from seedlings_spark import corpus, files, images, schema, scoring
from seedlings_spark.corpus import Corpus, decoding
from seedlings_spark.models.store import ModelStore
from seedlings_spark.workflow import publication
from tests import hostile
from tests.conftest import HANG_SECONDS, ROOT, SHARED, shared_data
from tests.hostile import PREDICTED, Case, Row

CLASSES = ["Charlock", "Cleavers", "Fat Hen", "Maize"]
GROUPS = (
    "whole", "cut", "damaged", "garbage", "misnamed", "pretending", "bombs", "frames", "colours", "orientations",
    "metadata", "names",
)  # fmt: skip
ARCHIVE, TABLE = "bad_images_dev.tar", "bad_images_dev.csv"
# No file, or a name that no Spark string can hold: how it is listed.
UNREADABLE = (
    "odd files/dangling.png",
    "odd files/loop.png",
    "odd files/pipe.png",
    "odd files//latin1_\\xe9.png",
)


# --- the folder, and what is made of it -----------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hostile") / "a folder's {a,b} [1-3]* 100% é"
    if (SHARED / ARCHIVE).exists():
        with tarfile.open(SHARED / ARCHIVE) as archive:
            archive.extractall(made.parent / "extracted", filter="data")
        (made.parent / "extracted" / "bad_images").rename(made)
    hostile.write(made)
    odd = made / "odd files"
    (odd / "a folder.png").mkdir(parents=True)
    (odd / "dangling.png").symlink_to("nowhere")
    (odd / "loop.png").symlink_to("loop.png")
    os.mkfifo(odd / "pipe.png")
    not_utf8 = os.fsencode(odd) + b"/latin1_\xe9.png"
    with open(not_utf8, "wb") as file:  # noqa: PTH123 - a name of bytes
        file.write(hostile.kinds()["png"][1])
    return made


@pytest.fixture(scope="module")
def store(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    keras.utils.set_random_seed(11)
    height, width = hostile.TASK.size
    network = keras.Sequential(
        [
            keras.Input((height, width, 3)),
            layers.Rescaling(1 / 128, -1),
            layers.Conv2D(6, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(len(CLASSES), activation="softmax"),
        ]
    )
    target = tmp_path_factory.mktemp("store")
    network.save(target / "network.keras")
    made = ModelStore(files.qualify(str(target / "store")), "hostile")
    publication.import_network(
        made, str(target / "network.keras"), CLASSES, aspect=hostile.TASK.aspect, promote=True
    )
    return made


@pytest.fixture(scope="module")
def run(
    spark: SparkSession, store: ModelStore, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> scoring.ScoreRun:
    output = files.qualify(str(tmp_path_factory.mktemp("scores") / "output"))
    return scoring.score(spark, store.resolve(), hostile.scoring_options(files.qualify(str(folder)), output))


@pytest.fixture(scope="module")
def rows(spark: SparkSession, run: scoring.ScoreRun, folder: Path) -> dict[str, Row]:
    """Path below the folder -> what has become of it."""
    return by_path(hostile.scored(spark, run.path), folder)


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    target = str(tmp_path_factory.mktemp("corpus") / "corpus")
    rule = corpus.SplitRule({"train": 0.7, "validation": 0.15, "test": 0.15})
    return corpus.prepare(spark, str(folder), target, hostile.TASK, rule, corpus.Selection("drop"))


def by_path(rows: list[list[Any]], folder: Path) -> dict[str, Row]:
    prefix = files.qualify(str(folder)) + "/"
    assert all(row[0].startswith(prefix) for row in rows)
    found = {row[0].removeprefix(prefix): Row(row[0].removeprefix(prefix), *row[1:]) for row in rows}
    assert len(found) == len(rows), "a file has two rows"
    return found


def in_a_process_of_its_own(
    result: Path, *arguments: str, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """What `tests.hostile` says of itself when it is run as a program."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", *arguments, str(result)],
        cwd=ROOT,
        env={**(os.environ if environment is None else environment), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    return dict(json.loads(result.read_text()))


def cases_of(*groups: str) -> list[Case]:
    return [case for case in hostile.cases() if case.group in groups]


def differences(rows: dict[str, Row], cases: list[Case]) -> dict[str, float]:
    """Of each case that is to be predicted as another is: the largest difference of a probability."""
    found = {}
    for case in cases:
        if case.like is not None and rows[case.path].probabilities is not None:
            own, other = rows[case.path].probabilities, rows[case.like].probabilities
            found[case.path] = float(np.abs(np.subtract(own, other)).max())
    return found


def beyond_tolerance(rows: dict[str, Row], cases: list[Case]) -> dict[str, float]:
    tolerances = {case.path: case.tolerance for case in cases}
    return {path: found for path, found in differences(rows, cases).items() if found > tolerances[path]}


# --- each file is one row -------------------------------------------------------------------------------


def test_there_are_hundreds_of_cases_and_nearly_all_have_one_outcome() -> None:
    cases = hostile.cases()
    assert {case.group for case in cases} == set(GROUPS)
    assert all(case.outcomes <= {PREDICTED, *schema.REJECT_REASONS} for case in cases)
    assert len(cases) > 500
    assert sum(len(case.outcomes) == 1 for case in cases) > 400
    formats = {hostile._format(kind) for kind in hostile.kinds()}
    assert formats == set(images.FORMATS)


def _shown(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return "/" + name.decode(errors="backslashreplace")


def test_every_file_has_exactly_one_row(rows: dict[str, Row], run: scoring.ScoreRun, folder: Path) -> None:
    start = os.fsencode(folder) + b"/"
    there = [
        os.path.join(place, name).removeprefix(start)  # noqa: PTH118 - a name of bytes
        for place, _, names in os.walk(os.fsencode(folder))
        for name in names
    ]
    assert sorted("/".join(map(_shown, path.split(b"/"))) for path in there) == sorted(rows)
    assert {case.path for case in hostile.cases()} | set(UNREADABLE) <= set(rows)
    manifest = run.manifest
    assert (manifest["listed"], manifest["scored"] + manifest["rejected"]) == (len(rows), len(rows))


def test_reasons_and_stages_are_of_the_fixed_vocabulary(
    spark: SparkSession, rows: dict[str, Row], prepared: Corpus
) -> None:
    rejects = [(row.outcome, row.stage) for row in rows.values() if row.outcome != PREDICTED]
    rejects += [(row.reason, row.stage) for row in prepared.rejects(spark).collect()]
    assert {reason for reason, _ in rejects} <= set(schema.REJECT_REASONS)
    assert {stage for _, stage in rejects} <= set(schema.STAGES)
    assert len({reason for reason, _ in rejects}) >= 7


def test_a_content_hash_is_that_of_the_file(rows: dict[str, Row]) -> None:
    for case in hostile.cases():
        found = rows[case.path].content_hash
        assert found == (hashlib.sha256(case.content).hexdigest() if case.content else None), case.path


def test_what_is_no_readable_file_is_unreadable(rows: dict[str, Row]) -> None:
    assert {path: (rows[path].outcome, rows[path].stage) for path in UNREADABLE} == dict.fromkeys(
        UNREADABLE, ("unreadable", "list")
    )


# --- what becomes of each -------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_each_case_ends_as_it_should(rows: dict[str, Row], group: str) -> None:
    wrong = {
        case.path: (rows[case.path].outcome, rows[case.path].detail, sorted(case.outcomes))
        for case in cases_of(group)
        if rows[case.path].outcome not in case.outcomes
    }
    assert wrong == {}
    stages = {(rows[case.path].outcome, rows[case.path].stage) for case in cases_of(group)}
    assert stages <= {
        (PREDICTED, None),
        ("empty", "list"),
        *((each, "decode") for each in schema.REJECT_REASONS),
    }


@pytest.mark.parametrize("group", ["cut", "garbage", "misnamed", "frames", "metadata", "names"])
def test_what_is_only_odd_changes_no_prediction(rows: dict[str, Row], group: str) -> None:
    assert differences(rows, cases_of(group))
    assert beyond_tolerance(rows, cases_of(group)) == {}


def test_eight_orientations_of_one_picture_have_equal_predictions(rows: dict[str, Row]) -> None:
    """To 1e-5 where they are stored losslessly (the pixels are equal), to 0.01 as JPEG, whose blocks are turned."""
    cases = cases_of("orientations")
    assert len(differences(rows, cases)) == 33
    assert beyond_tolerance(rows, cases) == {}
    # An orientation that is not heeded would be seen: a picture that lies has other probabilities.
    lying, upright = (rows[f"orientations/{name}.png"].probabilities for name in ("lying", "1"))
    assert np.abs(np.subtract(lying, upright)).max() > 0.1


def test_a_picture_has_the_same_prediction_however_its_colours_are_stored(rows: dict[str, Row]) -> None:
    """To 1e-5 where the pixels are equal, to 0.01 where the way is lossy (JPEG, YCbCr)."""
    cases = cases_of("colours")
    assert len(differences(rows, cases)) > 45
    assert beyond_tolerance(rows, cases) == {}
    # The tolerance cannot be met by chance: another picture is much farther away.
    for one, other in (
        ("whole/png.png", "colours/negative.png"),
        ("colours/grey.png", "colours/grey negative.png"),
        ("whole/png.png", "colours/grey.png"),
    ):
        assert np.abs(np.subtract(rows[one].probabilities, rows[other].probabilities)).max() > 0.05


def test_bombs_are_refused_by_their_headers(rows: dict[str, Row]) -> None:
    """By the sizes that they announce, and not because memory ran out."""
    refused = [rows[case.path] for case in cases_of("bombs") if case.outcomes == {"too_large"}]
    assert len(refused) > 20
    by_other_limits = {"bombs/scans.jpg": "more than 1,000 scans"}
    for row in refused:
        expected = by_other_limits.get(row.path, f"pixels, more than the {images.MAX_PIXELS} allowed")
        assert expected in (row.detail or ""), row


# --- the shared files, and what Pillow says of them -----------------------------------------------------


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    """What Pillow 13 does with each file of the archive."""
    with (
        shared_data(TABLE).open(encoding="utf-8", newline="") as file,
        tarfile.open(shared_data(ARCHIVE)) as tar,
    ):
        there = {name.removeprefix("bad_images/") for name in tar.getnames()}
        # One row is of a file that a tar of this kind cannot hold; `UNREADABLE` has one like it.
        return [row for row in csv.DictReader(file) if row["path"] in there]


def is_decoded(row: dict[str, str]) -> bool:
    return {row["pillow_open"], row["pillow_load"], row["pillow_to_rgb"]} == {"ok"}


def test_the_archive_is_in_the_folder(rows: dict[str, Row], table: list[dict[str, str]]) -> None:
    assert len(table) == 468
    assert {row["path"]: row["sha256"] for row in table} == {
        row["path"]: rows[row["path"]].content_hash or hashlib.sha256(b"").hexdigest() for row in table
    }


def test_what_pillow_cannot_decode_is_never_predicted(
    rows: dict[str, Row], table: list[dict[str, str]]
) -> None:
    """Among it 13 files of which a second `load` after the failed one would give a partly empty picture."""
    # What Pillow stumbles over in metadata, or in layouts of BMP that it does not know.
    whole = {
        "pillow/apng__chunk_no_fctl.png", "pillow/bmp__q__pal2.bmp", "pillow/bmp__q__pal8os2v2-16.bmp",
        "pillow/png_decompression_dos.png", "pillow/unknown_compression_method.png", "generated/ztxt_bomb.png",
    }  # fmt: skip
    broken = [row for row in table if not is_decoded(row) and row["path"] not in whole]
    assert len(broken) > 100
    assert sum(row["pillow_second_load_after_failure"] == "ok(silent)" for row in broken) >= 10
    assert [row["path"] for row in broken if rows[row["path"]].outcome == PREDICTED] == []
    bombs = [row["path"] for row in broken if row["pillow_open"].startswith("raises DecompressionBombError")]
    assert {rows[path].outcome for path in bombs} == {"too_large"}


def test_what_pillow_decodes_of_an_accepted_format_is_predicted(
    rows: dict[str, Row], table: list[dict[str, str]]
) -> None:
    accepted = {*(name.upper() for name in images.FORMATS), "MPO"}  # MPO: a JPEG with further ones behind it
    expected = {}
    for row in (row for row in table if is_decoded(row)):
        width, height = map(int, row["pillow_size"].split("x"))
        if row["pillow_format"] not in accepted:
            expected[row["path"]] = "unsupported_format"
        elif width * height > hostile.TASK.max_pixels:
            expected[row["path"]] = "too_large"  # two, of which Pillow warns or has a larger limit
        elif row["path"] == "pngsuite/xcsn0g01.png":
            expected[row["path"]] = "corrupt"  # the checksum of its pixels, which Pillow does not look at
        elif row["path"] == "oddnames/id:000223,src:000000,op:flip2,pos:503,+cov.jpg":
            expected[row["path"]] = "truncated"  # it has no end
        elif row["path"] == "pillow/crash-74d2a78403a5a59db1fb0a2b8735ac068a75f6e3.tif":
            expected[row["path"]] = "corrupt"  # libtiff says so, Pillow does not listen
        elif row["path"] == "pillow/bmp__b__badrle.bmp":
            expected[row["path"]] = "truncated"  # it has 3,058 of 8,128 pixels
        else:
            expected[row["path"]] = PREDICTED
    assert list(expected.values()).count(PREDICTED) > 300
    assert {path: rows[path].outcome for path in expected} == expected


# --- the same verdicts elsewhere ------------------------------------------------------------------------


def test_prepare_gives_every_file_the_same_verdict(
    spark: SparkSession, rows: dict[str, Row], prepared: Corpus, folder: Path
) -> None:
    """Except for the same bytes in two folders, which are the species here: those are conflicts."""
    species = defaultdict(set)
    for row in rows.values():
        if row.outcome == PREDICTED:
            species[row.content_hash].add(row.path.partition("/")[0])
    expected = {
        row.path: "conflicting_species" if len(species[row.content_hash]) > 1 else row.outcome
        for row in rows.values()
    }
    # Of a hidden folder `prepare` lists nothing but the folder.
    for path, hidden in (
        ("names/.hidden/_folder/.png", "names/.hidden"),
        ("names/_temporary/0/part-00000.png", "names/_temporary"),
    ):
        del expected[path]
        expected[hidden] = "hidden"
    prefix = files.qualify(str(folder)) + "/"
    made = prepared.images(spark).select(schema.PATH, schema.CONTENT_HASH, schema.IMAGE).collect()
    rejects = prepared.rejects(spark).collect()
    found = {row.path.removeprefix(prefix): PREDICTED for row in made}
    found |= {row.path.removeprefix(prefix): row.reason for row in rejects}
    assert len(found) == len(made) + len(rejects)
    assert found == expected
    assert list(found.values()).count("conflicting_species") > 50
    manifest = prepared.manifest
    assert (manifest["listed"], manifest["accepted"]) == (len(rows), len(made))
    height, width = hostile.TASK.size
    assert {len(row.image) for row in made} == {height * width * 3}


def test_a_process_without_a_locale_gives_the_same_rows(
    rows: dict[str, Row], store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LANG", "LANGUAGE", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONCOERCECLOCALE")
        and not name.startswith("LC_")
    }
    arguments = ("score", files.parent(store.path), files.qualify(str(folder)), f"file://{tmp_path}/output")
    made = in_a_process_of_its_own(
        tmp_path / "result.json", *arguments, environment={**environment, "LC_ALL": "POSIX"}
    )
    again = by_path(made["rows"], folder)
    assert sum(not path.isascii() for path in again) >= 8
    assert {path: (row.outcome, row.stage, row.detail, row.content_hash) for path, row in again.items()} == {
        path: (row.outcome, row.stage, row.detail, row.content_hash) for path, row in rows.items()
    }
    for path, row in again.items():
        if row.probabilities is not None:
            np.testing.assert_allclose(row.probabilities, rows[path].probabilities, atol=1e-5, err_msg=path)
    not_utf8 = [row for row in again.values() if "latin1_" in row.path]
    assert [(row.path, row.outcome) for row in not_utf8 if "odd files" in row.path] == [
        ("odd files//latin1_\\xe9.png", "unreadable")
    ]


# --- memory and time ------------------------------------------------------------------------------------

MEMORY, SECONDS = 1.5e9, 10.0  # of the processor, so that other work on the machine does not count


def test_one_process_decodes_all_files_in_little_memory_and_time(
    rows: dict[str, Row], folder: Path, tmp_path: Path
) -> None:
    found = in_a_process_of_its_own(tmp_path / "result.json", "decode", str(folder))
    prefix = files.qualify(str(folder)) + "/"
    outcomes = {path.removeprefix(prefix): tuple(each[:2]) for path, each in found["files"].items()}
    assert outcomes == {path: (row.outcome, row.stage) for path, row in rows.items()}
    assert {path: each[2] for path, each in found["files"].items() if each[2] > SECONDS} == {}
    assert found["peak"] < MEMORY
    # A bomb's pixels would be seen: 16,000 x 16,000 of them are 256 MB and more. Text may inflate to 64 MB.
    bombs = {
        path: each[3]
        for path, each in found["files"].items()
        if "/bombs/" in path and each[0] != PREDICTED and not path.endswith("text.png")
    }
    assert len(bombs) > 20
    assert max(bombs.values()) < 50e6


@pytest.mark.skipif("SEEDLINGS_TEST_ALL" not in os.environ, reason="takes half a minute: with test --all")
def test_the_most_costly_files_that_the_limits_allow_are_bounded_too(tmp_path: Path) -> None:
    """As many pixels as allowed, in the formats that take most memory; as many bytes, in as many parts as fit."""
    found = in_a_process_of_its_own(tmp_path / "result.json", "largest")
    assert {name: each[0] for name, each in found["files"].items()} == {
        "all pixels.webp": PREDICTED,
        "all pixels.png": PREDICTED,
        "tiles.tif": "too_large",
        "escapes.bmp": "too_large",
        "padding.jpg": PREDICTED,
        "segments.jpg": "too_large",
        "exif.jpg": PREDICTED,
        "chunks.png": "too_large",
        "padding.gif": "too_large",
    }
    assert {name: each[2] for name, each in found["files"].items() if each[2] > SECONDS} == {}
    assert found["peak"] < MEMORY


def test_all_parts_that_a_real_file_has_are_read() -> None:
    """A PNG in blocks of one byte and a JPEG with very many segments are below the limits that the others hit."""
    still, jpeg = hostile.kinds()["png"][1], hostile.kinds()["jpeg"][1]
    (start, end) = next((start, end) for kind, start, end in images.png.chunks(still) if kind == b"IDAT")
    blocks = b"".join(hostile.chunk(b"IDAT", still[at : at + 1]) for at in range(start, end))
    in_blocks = still[: start - 8] + blocks + still[end + 4 :]
    many = jpeg[:2] + b"\xff\xef\0\2" * 20_000 + b"\xff" * 20_000 + jpeg[2:]
    for content, whole in ((in_blocks, still), (many, jpeg)):
        decoded = decoding.read_and_decode(hostile.TASK, {}, content)
        assert decoded.reason is None, decoded.detail
        assert np.array_equal(decoded.pixels, images.decode(whole, hostile.TASK.size, aspect="stretch"))
