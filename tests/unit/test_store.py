"""Model versions in a store, on the local file system."""

import datetime
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from seedlings_spark import files
from seedlings_spark.errors import StoreError
from seedlings_spark.models.store import ModelStore, ModelVersion, names, table
from seedlings_spark.workflow import clean

MANIFEST: dict[str, Any] = {
    "classes": ["Maize", "Charlock"],
    "image_size": [48, 64],
    "metrics": {"accuracy": 0.5},
}


@pytest.fixture
def store(hostile_path: Path) -> ModelStore:
    return ModelStore(str(hostile_path), "seedlings")


def build(folder: str) -> None:
    files.write_bytes(f"{folder}/network.keras", b"weights")
    files.write_text(f"{folder}/model/metadata/part-00000", "{}")
    files.write_text(f"{folder}/model/metadata/_SUCCESS", "")
    files.write_text(f"{folder}/report/metrics.json", "{}")


def publish(store: ModelStore, *, promote: bool = True) -> ModelVersion:
    return store.publish(build, MANIFEST, promote=promote)


def promotions(store: ModelStore) -> list[str]:
    return files.read_text(store.promotions_path).splitlines()


def edit_manifest(version: ModelVersion, **changes: object) -> None:
    manifest = json.loads(files.read_text(version.manifest_path))
    files.write_text(version.manifest_path, json.dumps({**manifest, **changes}))


# --- Names


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../other",
        "a/b",
        "/etc",
        ".hidden",
        "-option",
        "a\\b",
        "a b",
        "a\n",
        "a\0b",
        "n" * 129,
        "s\u00e9",
    ],
)
def test_a_models_name_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="the model's name"):
        ModelStore(str(tmp_path), name)


@pytest.mark.parametrize(
    "version",
    [
        "",
        ".",
        "..",
        "../v0001",
        "v0001/../v0002",
        "/v0001",
        "v1",
        "v00001",
        "V0001",
        "v0001\n",
        "v0001 ",
        "v\u0660001",
        "Current",
        ".building-1",
        "v0001\0",
        "latest",
    ],
)
def test_a_versions_name_cannot_leave_the_model(store: ModelStore, version: str) -> None:
    publish(store)
    for function in (store.version_path, store.resolve, store.promote, store.verify):
        with pytest.raises(StoreError, match="the version"):
            function(version)


@pytest.mark.parametrize("text", ["../other/v0001", "", "/v0001", "v0001\nv0002", "\x80", "current"])
def test_a_damaged_current_file_is_refused(store: ModelStore, text: str) -> None:
    publish(store)
    Path(store.current_path).write_bytes(text.encode("latin-1"))
    for function in (store.resolve, store.current, store.rollback):
        with pytest.raises(StoreError, match="one line with the name of a version"):
            function()


def test_versions_sort_by_number_beyond_four_digits(store: ModelStore) -> None:
    first = publish(store)
    files.put(Path(first.path), store.version_path("v9999"))
    assert publish(store).version == "v10000"
    assert [version.version for version in store.versions()] == ["v0001", "v9999", "v10000"]


# --- Nothing there


def test_an_empty_store_says_so(store: ModelStore) -> None:
    assert store.versions() == []
    assert store.current() is None
    for function in (store.resolve, store.rollback, lambda: store.promote("v0001")):
        with pytest.raises(StoreError, match="no store at"):
            function()
    with pytest.raises(StoreError, match="no store at"):
        names(store.directory)
    files.make_directory(store.directory)
    assert names(store.directory) == []
    with pytest.raises(StoreError, match=r"no model seedlings in .* there is none"):
        store.resolve()


def test_an_unknown_model_is_answered_with_the_models_that_there_are(store: ModelStore) -> None:
    publish(store)
    publish(ModelStore(store.directory, "maize"))
    files.write_text(files.join(store.directory, "README"), "")
    files.make_directory(files.join(store.directory, ".trash"))
    assert names(store.directory) == ["maize", "seedlings"]
    with pytest.raises(StoreError, match=r"no model wheat in .* one of maize, seedlings"):
        ModelStore(store.directory, "wheat").resolve()


def test_an_unknown_version_is_answered_with_the_versions_that_there_are(store: ModelStore) -> None:
    publish(store)
    publish(store)
    with pytest.raises(StoreError, match=r"no version v0007 .* one of v0001, v0002, or 'current'"):
        store.resolve("v0007")
    with pytest.raises(StoreError, match="no version v0007"):
        store.promote("v0007")
    assert store.current() == "v0002"


def test_no_current_version_is_answered_with_the_versions_that_there_are(store: ModelStore) -> None:
    publish(store, promote=False)
    assert store.current() is None
    with pytest.raises(StoreError, match=r"no version of .* is promoted; there are v0001"):
        store.resolve()


def test_a_current_version_that_is_missing_is_an_error(store: ModelStore) -> None:
    publish(store)
    files.delete(publish(store).path)
    with pytest.raises(StoreError, match=r"names v0002, which is missing.* one of v0001"):
        store.resolve()
    assert store.rollback().version == "v0001"
    assert store.resolve().version == "v0001"


# --- Publishing


def test_a_published_version_is_what_was_built(store: ModelStore) -> None:
    published = publish(store)
    assert published == store.resolve() == store.resolve("v0001") == store.verify()
    assert published.path == f"{store.directory}/seedlings/v0001"
    assert files.list_names(published.path) == ["manifest.json", "model", "network.keras", "report"]
    assert files.read_bytes(published.network_path) == b"weights"
    assert files.list_names(published.pipeline_path) == ["metadata"]
    assert files.list_names(published.report_path) == ["metrics.json"]
    assert published.classes == ("Maize", "Charlock")
    assert published.image_size == (48, 64)
    manifest = dict(published.manifest)
    assert manifest.pop("created")[-6:] == "+00:00"
    assert manifest == {
        "format": 1,
        "name": "seedlings",
        "version": "v0001",
        **MANIFEST,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in (
                ("network.keras", b"weights"),
                ("model/metadata/part-00000", b"{}"),
                ("model/metadata/_SUCCESS", b""),
                ("report/metrics.json", b"{}"),
            )
        },
    }
    assert files.list_names(store.path) == ["current", "promotions", "v0001"]


def test_a_version_can_be_sent_to_a_worker(store: ModelStore) -> None:
    published = publish(store)
    assert pickle.loads(pickle.dumps(published)) == published
    assert len({published, store.resolve()}) == 1


def test_a_crash_in_build_leaves_no_version_and_no_folder(store: ModelStore) -> None:
    publish(store)
    for error in (RuntimeError("lost"), KeyboardInterrupt()):

        def crash(folder: str, error: BaseException = error) -> None:
            build(folder)
            raise error

        with pytest.raises(type(error)):
            store.publish(crash, MANIFEST)
    assert files.list_names(store.path) == ["current", "promotions", "v0001"]
    assert store.current() == "v0001"


def test_what_a_killed_publisher_left_is_no_version(store: ModelStore) -> None:
    program = (
        "import os, signal, sys\n"
        "from seedlings_spark import files; from seedlings_spark.models import store\n"
        "def build(folder):\n"
        "    files.write_bytes(folder + '/network.keras', b'half')\n"
        "    files.write_text(folder + '/manifest.json', '{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.ModelStore(sys.argv[1], 'seedlings').publish(build, {})\n"
    )
    assert run(program, store.directory).wait(60) == -9
    assert len(files.list_names(store.path)) == 1
    assert store.versions() == []
    with pytest.raises(StoreError, match="no version of seedlings"):
        store.resolve()
    assert publish(store).version == "v0001"


def test_a_folder_without_a_manifest_is_no_version_and_its_number_is_not_used_again(
    store: ModelStore,
) -> None:
    publish(store)
    files.write_bytes(f"{store.path}/v0002/network.keras", b"half")
    assert [version.version for version in store.versions()] == ["v0001"]
    with pytest.raises(StoreError, match="no version v0002"):
        store.resolve("v0002")
    assert publish(store).version == "v0003"


def test_a_version_without_a_network_is_not_published(store: ModelStore) -> None:
    with pytest.raises(StoreError, match=r"without network\.keras"):
        store.publish(lambda folder: None, MANIFEST)
    assert files.list_names(store.path) == []


@pytest.mark.parametrize(
    "manifest",
    [{"format": 2}, {"files": {}}, {"accuracy": float("nan")}, {"weights": object()}, {"raw": b"x"}],
)
def test_a_manifest_that_cannot_be_kept_is_refused_before_the_build(
    store: ModelStore, manifest: dict[str, Any]
) -> None:
    def never(folder: str) -> None:
        raise AssertionError(f"built {folder}")

    with pytest.raises(StoreError, match="a manifest"):
        store.publish(never, manifest)
    assert not files.exists(store.path)


def test_publishers_in_threads_each_get_a_version(store: ModelStore) -> None:
    barrier = threading.Barrier(8)
    published: list[ModelVersion] = []

    def build_together(folder: str) -> None:
        build(folder)
        barrier.wait()

    def run_publisher() -> None:
        published.append(store.publish(build_together, MANIFEST))

    threads = [threading.Thread(target=run_publisher) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [f"v{number:04d}" for number in range(1, 9)]
    assert sorted(version.version for version in published) == expected
    assert [version.manifest["version"] for version in store.versions()] == expected
    assert store.current() in expected
    assert files.list_names(store.path) == ["current", "promotions", *expected]


def test_publishers_in_processes_each_get_a_version(store: ModelStore) -> None:
    program = (
        "import sys\n"
        "from seedlings_spark import files; from seedlings_spark.models import store\n"
        "model = store.ModelStore(sys.argv[1], 'seedlings')\n"
        "for _ in range(5):\n"
        "    model.publish(lambda folder: files.write_bytes(folder + '/network.keras', b'x'), {})\n"
    )
    processes = [run(program, store.directory) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert [version.version for version in store.versions()] == [f"v{number:04d}" for number in range(1, 21)]
    for version in store.versions():
        store.verify(version.version)
    assert store.resolve().version == store.current()


def run(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment)


# --- Damage


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1', "\xff\xfe", '{"format": 1}'])
def test_a_damaged_manifest_is_refused_by_name(store: ModelStore, text: str) -> None:
    version = publish(store)
    Path(version.manifest_path).write_bytes(text.encode("latin-1"))
    for function in (store.resolve, store.versions, store.verify):
        with pytest.raises(StoreError, match=r"v0001/manifest\.json"):
            function()


@pytest.mark.parametrize("number", [0, 2, "1", None, 1.5])
def test_an_unknown_format_is_refused(store: ModelStore, number: object) -> None:
    edit_manifest(publish(store), format=number)
    with pytest.raises(StoreError, match=r"v0001/manifest\.json has format .*format 1"):
        store.resolve()


@pytest.mark.parametrize(
    "listed",
    [
        None,
        [],
        {"../../secret": {"bytes": 1}},
        {"/etc/passwd": {"bytes": 1}},
        {"a": 1},
        {"a": {}},
        {"a": {"bytes": -1}},
    ],
)
def test_a_damaged_list_of_files_is_refused(store: ModelStore, listed: object) -> None:
    edit_manifest(publish(store), files=listed)
    with pytest.raises(StoreError, match="no list of files, or a damaged one"):
        store.verify()


def test_a_manifest_without_classes_or_size_says_so_when_asked(store: ModelStore) -> None:
    for classes, size in [(None, None), ([], [64]), ("ab", [64, 0]), ([1], [64, 64.0]), ({}, [True, True])]:
        version = store.publish(build, {"classes": classes, "image_size": size})
        with pytest.raises(StoreError, match="as classes"):
            _ = version.classes
        with pytest.raises(StoreError, match="as image_size"):
            _ = version.image_size


@pytest.mark.parametrize(
    ("relative", "content", "found"),
    [
        ("network.keras", b"weighte", "sha256"),
        ("network.keras", b"weight", "6 bytes"),
        ("network.keras", None, "is missing"),
        ("model/metadata/part-00000", b"{}\n", "3 bytes"),
        ("model/metadata/part-00000", b"[]", "sha256"),
        ("model/metadata/_SUCCESS", None, "is missing"),
    ],
)
def test_verify_names_the_file_that_is_not_what_was_published(
    store: ModelStore, relative: str, content: bytes | None, found: str
) -> None:
    version = publish(store)
    path = files.join(version.path, relative)
    if content is None:
        files.delete(path)
    else:
        files.write_bytes(path, content)
    with pytest.raises(StoreError) as error:
        store.verify("v0001")
    assert path in str(error.value)
    assert found in str(error.value)


def test_a_store_can_be_copied_without_the_checksums_that_hadoop_kept(store: ModelStore) -> None:
    def build_with_checksums(folder: str) -> None:
        build(folder)
        files.write_bytes(f"{folder}/model/metadata/.part-00000.crc", b"crc")

    version = store.publish(build_with_checksums, MANIFEST)
    files.delete(f"{version.path}/model/metadata/.part-00000.crc")
    store.verify()


@pytest.mark.parametrize(
    "relative",
    [
        "x",
        "model/data/_common_metadata",
        "model/metadata/part-00001",
        "model/.hidden",
        ".x.crc",
        "report/a/b",
    ],
)
def test_a_file_that_was_not_published_is_an_error(store: ModelStore, relative: str) -> None:
    version = publish(store)
    for known in (".manifest.json.crc", "model/metadata/.part-00000.crc"):
        files.write_bytes(files.join(version.path, known), b"crc")
    store.verify()
    files.write_bytes(files.join(version.path, relative), b"x")
    with pytest.raises(StoreError, match="does not list") as error:
        store.verify()
    assert relative in str(error.value)


def test_a_link_in_a_version_is_an_error(store: ModelStore, tmp_path: Path) -> None:
    version = publish(store)
    place = Path(version.path) / "model" / "metadata"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        store.verify()


def test_only_the_contents_that_are_asked_for_are_read(store: ModelStore) -> None:
    version = publish(store)
    files.write_bytes(files.join(version.path, "model/metadata/part-00000"), b"[]")
    store.verify(contents=["network.keras"])
    with pytest.raises(StoreError, match="sha256"):
        store.verify()
    edit_manifest(version, files={"network.keras": {"bytes": 7}})
    for other in ("model", "report"):
        files.delete(files.join(version.path, other))
    with pytest.raises(StoreError, match="has no sha256"):
        store.verify()


# --- Signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Files with a private key, its public key, and the public key of somebody else."""
    folder = tmp_path_factory.mktemp("keys")
    private, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    (folder / "private.pem").write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    for name, key in (("public.pem", private), ("other.pem", other)):
        (folder / name).write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
    return str(folder / "private.pem"), str(folder / "public.pem"), str(folder / "other.pem")


def test_only_what_the_right_key_has_signed_is_used(store: ModelStore, keys: tuple[str, str, str]) -> None:
    private, public, other = keys
    publish(store)
    trusting, strict = store, ModelStore(store.directory, store.name, public)
    for use in (strict.resolve, strict.verify, lambda: strict.promote("v0001")):
        with pytest.raises(StoreError, match="has not signed"):
            use()
    version = trusting.sign("v0001", private)
    assert strict.verify().version == "v0001"
    with pytest.raises(StoreError, match="has not signed"):
        ModelStore(store.directory, store.name, other).resolve()
    # Another number, another name, another manifest, and a way back to what nobody signed.
    shutil.copytree(version.path, trusting.version_path("v0002"))
    with pytest.raises(StoreError, match="has not signed"):
        strict.promote("v0002")
    shutil.copytree(store.path, files.join(store.directory, "other"))
    with pytest.raises(StoreError, match="has not signed"):
        ModelStore(store.directory, "other", public).resolve("v0001")
    assert [line.split()[-1] for line in table(strict).splitlines()] == ["signed", "yes", "no"]
    trusting.promote("v0002")
    trusting.promote("v0001")
    with pytest.raises(StoreError, match="has not signed"):
        strict.rollback()
    edit_manifest(version, classes=["Charlock", "Maize"])
    with pytest.raises(StoreError, match="has not signed"):
        strict.resolve("v0001")


def test_a_signature_is_what_openssl_calls_one(store: ModelStore, keys: tuple[str, str, str]) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    private, public, other = keys
    version = publish(store)
    store.sign("current", private)
    call = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin", "-in", version.manifest_path]
    call += ["-sigfile", version.signature_path, "-inkey"]
    assert subprocess.run([*call, public], capture_output=True, check=False).returncode == 0
    assert subprocess.run([*call, other], capture_output=True, check=False).returncode != 0


def test_a_damaged_version_is_not_signed_and_a_strange_key_said_to_be_none(
    store: ModelStore, keys: tuple[str, str, str], tmp_path: Path
) -> None:
    private, public, _ = keys
    version = publish(store)
    for key in (public, str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(StoreError, match="key"):
            store.sign("v0001", key)
    for key in (private, str(tmp_path / "missing")):
        with pytest.raises(StoreError, match="key"):
            ModelStore(store.directory, store.name, key).resolve()
    files.write_bytes(version.network_path, b"others!")
    with pytest.raises(StoreError, match="sha256"):
        store.sign("v0001", private)
    assert not files.exists(version.signature_path)


# --- Promotion


def test_promoting_the_current_version_changes_nothing(store: ModelStore) -> None:
    publish(store)
    publish(store)
    for _ in range(3):
        assert store.promote("v0002").version == "v0002"
    assert promotions(store) == ["v0001", "v0002"]
    assert files.read_text(store.current_path) == "v0002\n"


def test_a_failed_promotion_changes_nothing(store: ModelStore) -> None:
    publish(store)
    edit_manifest(publish(store, promote=False), format=99)
    with pytest.raises(StoreError, match="format 99"):
        store.promote("v0002")
    assert store.current() == "v0001"
    assert promotions(store) == ["v0001"]


def test_each_rollback_goes_back_further_until_there_is_nothing_before(store: ModelStore) -> None:
    for _ in range(3):
        publish(store)
    assert store.rollback().version == "v0002"
    assert store.resolve().version == "v0002"
    assert store.rollback().version == "v0001"
    with pytest.raises(
        StoreError, match=r"no version of seedlings was current before v0001.*v0001, v0002, v0003"
    ):
        store.rollback()
    assert store.resolve().version == "v0001"


def test_rollback_passes_over_what_was_published_but_never_promoted(store: ModelStore) -> None:
    publish(store)
    publish(store)
    publish(store, promote=False)
    assert store.rollback().version == "v0001"


def test_rollback_needs_an_earlier_promotion(store: ModelStore) -> None:
    publish(store, promote=False)
    with pytest.raises(StoreError, match="current before now"):
        store.rollback()
    publish(store)
    with pytest.raises(StoreError, match="current before v0002"):
        store.rollback()


def test_a_version_rolled_back_from_is_not_rolled_back_to(store: ModelStore) -> None:
    for _ in range(3):
        publish(store)
    store.rollback()
    assert publish(store).version == "v0004"
    assert store.rollback().version == "v0002"


def test_rollback_follows_promotions_and_not_numbers(store: ModelStore) -> None:
    for _ in range(3):
        publish(store, promote=False)
    for version in ("v0001", "v0003", "v0001", "v0002"):
        store.promote(version)
    assert [store.rollback().version for _ in range(3)] == ["v0001", "v0003", "v0001"]


def test_rollback_passes_over_a_version_that_was_deleted(store: ModelStore) -> None:
    versions = [publish(store) for _ in range(3)]
    files.delete(versions[1].path)
    assert store.rollback().version == "v0001"


@pytest.mark.parametrize("lost", ["promotions", "current"])
@pytest.mark.parametrize("act", ["promote", "rollback"])
def test_a_crash_between_the_two_files_loses_no_way_back(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, lost: str, act: str
) -> None:
    for _ in range(3):
        publish(store)
    publish(store, promote=False)

    def crash(self: ModelStore, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, f"_write_{lost}", crash)
        with pytest.raises(KeyboardInterrupt):
            store.promote("v0004") if act == "promote" else store.rollback()
    expected = "v0002" if (act, lost) == ("rollback", "promotions") else "v0003"
    assert store.resolve().version == expected
    assert store.rollback().version == ("v0001" if expected == "v0002" else "v0002")


def test_a_lost_or_damaged_list_of_promotions_does_not_stop_a_promotion(store: ModelStore) -> None:
    publish(store)
    Path(store.promotions_path).write_bytes(b"\xff../v0001\n\n")
    publish(store)
    assert promotions(store) == ["v0001", "v0002"]
    files.delete(store.promotions_path)
    publish(store)
    assert promotions(store) == ["v0002", "v0003"]
    assert store.rollback().version == "v0002"


def test_a_reader_always_finds_a_version_while_others_promote(store: ModelStore) -> None:
    for _ in range(2):
        publish(store)
    done = threading.Event()

    def promote_in_turn() -> None:
        for _ in range(100):
            store.promote("v0001")
            store.promote("v0002")
        done.set()

    thread = threading.Thread(target=promote_in_turn)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(store.resolve().version)
    thread.join()
    assert seen <= {"v0001", "v0002"}
    assert store.current() == "v0002"


# --- Deleting


def test_a_deleted_version_is_gone_and_its_number_is_not_used_again(store: ModelStore) -> None:
    for _ in range(3):
        publish(store)
    size = sum(each.length for each in files.walk(store.version_path("v0002")))
    assert store.delete("v0002") == size > 0
    assert [each.version for each in store.versions()] == ["v0001", "v0003"]
    assert files.list_names(store.version_path("v0002")) == ["deleted"]
    assert store.left_behind() == []
    assert store.rollback().version == "v0001"
    assert store.delete("v0003")
    assert publish(store).version == "v0004"


def test_the_current_version_is_not_deleted(store: ModelStore) -> None:
    publish(store)
    with pytest.raises(StoreError, match="v0001, which is the current version"):
        store.delete("v0001")
    with pytest.raises(StoreError, match="no version v0007"):
        store.delete("v0007")
    assert store.verify().version == "v0001"


def test_a_deletion_that_was_cut_short_leaves_no_version_and_can_be_ended(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        publish(store)
    delete = files.delete
    monkeypatch.setattr(files, "delete", lambda path: delete(path) if path.endswith(".json") else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.delete("v0001")
    monkeypatch.undo()
    assert [each.version for each in store.versions()] == ["v0002"]
    assert store.left_behind() == [store.version_path("v0001")]
    store.remove_left_behind(store.version_path("v0001"))
    assert files.list_names(store.version_path("v0001")) == ["deleted"] and store.left_behind() == []


def test_what_a_dead_publisher_leaves_is_told_from_what_a_living_one_makes(store: ModelStore) -> None:
    dead = files.join(store.path, ".building-dead")
    files.write_text(files.join(dead, "version", "network.keras"), "half")

    def look(folder: str) -> None:
        build(folder)
        assert store.left_behind() == [dead]

    store.publish(look, MANIFEST)
    store.remove_left_behind(dead)
    assert files.list_names(store.path) == ["current", "promotions", "v0001"]


def test_a_model_that_is_not_there_is_not_said_to_be_clean(store: ModelStore) -> None:
    with pytest.raises(StoreError, match="no store at"):
        clean.clean_store(store, datetime.timedelta(0), dry=False)


def test_of_a_store_the_versions_in_use_and_the_young_ones_stay(store: ModelStore) -> None:
    for _ in range(6):
        publish(store, promote=False)
    for version in ("v0002", "v0004"):
        store.promote(version)
    for version in store.versions():
        edit_manifest(version, created=f"2026-01-0{version.version[-1]}T00:00:00+00:00")
    edit_manifest(store.resolve("v0005"), created=datetime.datetime.now(datetime.UTC).isoformat())
    month, removed = datetime.timedelta(days=30), ["v0001", "v0003"]
    for dry in (True, False):
        found = clean.clean_store(store, month, dry=dry)
        assert [files.name(each.path) for each in found] == removed
        assert all(each.num_bytes for each in found)
    assert [each.version for each in store.versions()] == ["v0002", "v0004", "v0005", "v0006"]
    assert clean.clean_store(store, month, dry=False) == []
