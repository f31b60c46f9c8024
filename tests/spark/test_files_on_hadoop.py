"""The promises of `files` through the JVM, its local files as Spark sees them, and a store over both.

Hadoop's ViewFileSystem mounts a local folder under another scheme, so that every call takes the way that
a call to HDFS takes.
"""

import threading
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from seedlings_spark import files
from seedlings_spark.errors import StoreError
from seedlings_spark.files.hadoop import HadoopPath
from seedlings_spark.models.store import ModelStore, names

# None with a colon: HDFS allows none, and Hadoop's own copies and listings fail on them.
HOSTILE_NAMES = [
    "a file",
    " leading and trailing ",
    'it\'s "quoted"',
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
    "100%",
    "a%20b",
    "50%25",
    "#1",
    "why?",
    "line\nbreak",
    "seedling \N{SEEDLING}",
    "{a,b}[0-9]*",
    "_hidden",
    ".hidden",
]


@pytest.fixture
def root(mounted: tuple[str, Path]) -> str:
    return mounted[0]


def visible(behind: Path) -> list[str]:
    """The names behind the mount without the checksums that Hadoop's local file system keeps there."""
    return sorted(each.name for each in behind.iterdir() if each.suffix != ".crc")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_what_is_written_is_read_under_any_name(mounted: tuple[str, Path], name: str) -> None:
    root, behind = mounted
    path = f"{root}/new folder/{name}"
    assert not files.is_local(path)
    assert files.qualify(path) == path
    files.write_text(path, "caf\N{LATIN SMALL LETTER E WITH ACUTE}\r\n")
    assert (behind / "new folder" / name).read_bytes() == b"caf\xc3\xa9\r\n"
    assert files.read_text(path) == "caf\N{LATIN SMALL LETTER E WITH ACUTE}\r\n"
    assert files.size(path) == 7
    assert files.list_names(f"{root}/new folder") == [name]
    assert [status.path for status in files.walk(root)] == [path]
    files.delete(path)
    assert not files.exists(path)


def test_a_file_is_overwritten_and_empty_files_are_files(mounted: tuple[str, Path]) -> None:
    root, behind = mounted
    files.write_text(f"{root}/current", "old")
    files.write_text(f"{root}/current", "new")
    assert files.read_text(f"{root}/current") == "new"
    files.write_bytes(f"{root}/current", b"")
    assert files.read_bytes(f"{root}/current") == b""
    assert visible(behind) == ["current"]


def test_a_file_larger_than_a_block_is_read_whole(root: str) -> None:
    data = bytes(range(256)) * (files.BLOCK_SIZE // 256) + b"end"
    files.write_bytes(f"{root}/large", data)
    assert [len(block) for block in files.read_blocks(f"{root}/large")] == [files.BLOCK_SIZE, 3]
    assert files.read_bytes(f"{root}/large") == data


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(
    mounted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, behind = mounted
    files.write_text(f"{root}/manifest.json", "old")

    def fail(*_: object) -> None:
        raise OSError(5, "the connection was lost")

    monkeypatch.setattr("seedlings_spark.files.hadoop.HadoopPath._rename", fail)
    with pytest.raises(OSError, match="connection was lost"):
        files.write_text(f"{root}/manifest.json", "new")
    with pytest.raises(OSError, match="connection was lost"):
        files.put(behind / "manifest.json", f"{root}/manifest.json")
    assert files.read_text(f"{root}/manifest.json") == "old"
    assert visible(behind) == ["manifest.json"]


def test_a_missing_file_is_a_file_not_found_error(root: str, tmp_path: Path) -> None:
    missing = f"{root}/missing"
    for function in (files.read_bytes, files.read_text, files.size, files.list_names, files.walk):
        with pytest.raises(FileNotFoundError):
            function(missing)
    with pytest.raises(FileNotFoundError):
        files.rename(missing, f"{root}/target")
    with pytest.raises(FileNotFoundError):
        files.put(tmp_path / "missing", f"{root}/target")
    with pytest.raises(FileNotFoundError):
        files.get(missing, tmp_path / "target")
    assert not files.exists(missing)
    assert not files.is_directory(missing)
    files.delete(missing)
    assert files.list_names(root) == []
    assert not (tmp_path / "target").exists()


def test_a_folder_is_no_file_and_a_file_no_folder(root: str) -> None:
    files.write_text(f"{root}/folder/file", "x")
    for function in (files.read_bytes, files.size):
        with pytest.raises(IsADirectoryError):
            function(f"{root}/folder")
    for function in (files.list_names, files.walk):
        with pytest.raises(NotADirectoryError):
            function(f"{root}/folder/file")
    with pytest.raises(FileExistsError):
        files.make_directory(f"{root}/folder/file")
    with pytest.raises(OSError, match="folder"):
        files.write_text(f"{root}/folder", "text")
    files.make_directory(f"{root}/folder")
    assert files.list_names(f"{root}/folder") == ["file"]


def test_another_error_of_the_jvm_is_an_oserror_of_one_line(spark: SparkSession) -> None:
    with pytest.raises(OSError, match='No FileSystem for scheme "bogus"') as error:
        files.exists("bogus://somewhere/data")
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match="bad host"):
        files.exists("hdfs://bad host name/data")


@pytest.mark.parametrize("source", ["file", "folder"])
@pytest.mark.parametrize("target", ["file", "empty folder", "full folder"])
def test_rename_refuses_whatever_is_at_the_target(root: str, source: str, target: str) -> None:
    for path, kind in ((f"{root}/old", source), (f"{root}/new", target)):
        if kind == "empty folder":
            files.make_directory(path)
        else:
            files.write_text(path if kind == "file" else f"{path}/inside", path)
    before = [status.path for status in files.walk(root)]
    with pytest.raises(FileExistsError):
        files.rename(f"{root}/old", f"{root}/new")
    # What FileContext itself promises, should something have come after the look.
    old, new = HadoopPath(f"{root}/old"), HadoopPath(f"{root}/new")
    with pytest.raises(OSError, match="new"):
        old._rename(new, "NONE")
    assert [status.path for status in files.walk(root)] == before


def test_rename_moves_files_and_folders_whole(root: str, tmp_path: Path) -> None:
    files.write_text(f"{root}/a/b/file", "x")
    files.rename(f"{root}/a/b/file", f"{root}/a/b/renamed")
    files.rename(f"{root}/a", f"{root}/c")
    assert [status.path for status in files.walk(root)] == [f"{root}/c/b/renamed"]
    with pytest.raises(FileNotFoundError):
        files.rename(f"{root}/c", f"{root}/no/such/folder")
    with pytest.raises(OSError, match="cannot cross file systems"):
        files.rename(f"{root}/c", str(tmp_path / "c"))


def test_of_many_folders_renamed_to_one_name_one_gets_it(root: str) -> None:
    for number in range(4):
        files.write_text(f"{root}/{number}/file", str(number))
    barrier = threading.Barrier(4)
    outcomes: list[str] = []

    def publish(number: int) -> None:
        barrier.wait()
        try:
            files.rename(f"{root}/{number}", f"{root}/published")
            outcomes.append("won")
        except FileExistsError:
            outcomes.append("lost")

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 3 + ["won"]
    assert len(files.list_names(root)) == 4


def test_a_folder_is_put_and_got_whole_with_hidden_and_empty_files(
    mounted: tuple[str, Path], tmp_path: Path
) -> None:
    root, behind = mounted
    local = tmp_path / "local"
    names = ["it's 100% \N{SEEDLING}", "sub/.hidden", "sub/_SUCCESS"]
    for name in names:
        files.write_text(f"{local}/{name}", "")
    files.put(local, f"{root}/store/copy")
    assert [status.path for status in files.walk(root)] == [f"{root}/store/copy/{name}" for name in names]
    files.get(f"{root}/store/copy", tmp_path / "back")
    # No checksums beside the local copies.
    assert [status.path for status in files.walk(f"{tmp_path}/back")] == [
        f"{tmp_path}/back/{name}" for name in names
    ]
    with pytest.raises(FileExistsError):
        files.put(local, f"{root}/store/copy")
    with pytest.raises(FileExistsError):
        files.get(f"{root}/store/copy", tmp_path / "back")
    assert visible(behind / "store") == ["copy"]


def test_one_file_is_put_and_got_in_place_of_another(root: str, tmp_path: Path) -> None:
    files.write_text(f"{tmp_path}/one", "1")
    files.write_text(f"{tmp_path}/two", "22")
    files.put(tmp_path / "one", f"{root}/new folder/file")
    files.put(tmp_path / "two", f"{root}/new folder/file")
    assert files.read_text(f"{root}/new folder/file") == "22"
    files.get(f"{root}/new folder/file", tmp_path / "one")
    assert (tmp_path / "one").read_text() == "22"
    assert files.list_names(f"{root}/new folder") == ["file"]


def test_walk_lists_every_file_in_the_order_of_the_paths(root: str) -> None:
    names = ["a b", "a/z", "a.png", "ab", "_SUCCESS", ".hidden/x", "deep/er/still/x", "Z", "\N{SEEDLING}"]
    for name in names:
        files.write_text(f"{root}/{name}", "")
    files.write_bytes(f"{root}/Z", b"123")
    files.make_directory(f"{root}/an empty folder")
    listed = list(files.walk(root))
    assert [status.path for status in listed] == sorted(f"{root}/{name}" for name in names)
    assert [status.length for status in listed if status.path == f"{root}/Z"] == [3]
    assert {status.error for status in listed} == {None}
    assert all(abs(status.modified - (Path("/proc/self").stat().st_mtime)) < 86400 for status in listed)


def test_a_folder_that_vanishes_during_the_walk_is_listed_with_the_reason(root: str) -> None:
    files.write_text(f"{root}/a", "")
    files.write_text(f"{root}/b/x", "")
    walk = files.walk(root)
    assert next(walk).path == f"{root}/a"
    files.delete(f"{root}/b")
    (lost,) = list(walk)
    assert lost.path == f"{root}/b"
    assert lost.error


def test_the_root_of_a_file_system_is_never_deleted(root: str) -> None:
    with pytest.raises(ValueError, match="root"):
        files.delete(files.parent(root))


def test_a_path_without_a_scheme_is_on_the_default_file_system_in_every_thread(
    spark: SparkSession, root: str
) -> None:
    files.write_text(f"{root}/file", "remote")
    configuration = spark.sparkContext._jsc.hadoopConfiguration()
    default = configuration.get("fs.defaultFS")
    configuration.set("fs.defaultFS", files.parent(root))
    seen: list[object] = []

    def look() -> None:
        seen.extend(
            [files.qualify("/data/file"), files.is_local("/data/file"), files.read_text("/data/file")]
        )
        seen.append([status.path for status in files.walk("/data")])

    try:
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert files.is_local("file:///data/file")
    finally:
        configuration.set("fs.defaultFS", default)
    assert seen == [f"{root}/file", False, "remote", ["/data/file"]] * 2
    assert files.qualify("/data/file") == "file:///data/file"


# --- Local files, as Spark sees them


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "12:30.png", "back\\slash"])
def test_hadoop_reads_a_qualified_local_path_as_the_same_file(
    spark: SparkSession, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    uri = files.qualify(str(path))
    hadoop_path = spark.sparkContext._jvm.org.apache.hadoop.fs.Path(uri)
    assert hadoop_path.toUri().getPath() == str(path)
    assert files.qualify(hadoop_path.toString()) == uri
    assert HadoopPath(uri).size() == 1


@pytest.mark.parametrize(
    "name", ["a%20b", "100% #1?", "it's caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{SEEDLING}"]
)
def test_spark_lists_a_file_under_the_path_that_walk_gives(
    spark: SparkSession, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    (status,) = files.walk(files.qualify(str(tmp_path)))
    (row,) = spark.read.format("binaryFile").load(status.path).select("path").collect()
    assert files.qualify(row.path) == status.path


@pytest.mark.parametrize("way", ["write_bytes", "put", "get", "rename"])
def test_spark_reads_what_python_wrote_over_a_file_of_its_own(
    spark: SparkSession, tmp_path: Path, way: str
) -> None:
    path, other = tmp_path / "part.txt", tmp_path / "other.txt"
    HadoopPath(f"file://{path}").write_bytes(b"written by Hadoop, with checksums")
    assert (tmp_path / ".part.txt.crc").exists()
    other.write_bytes(b"new")
    if way == "write_bytes":
        files.write_bytes(str(path), b"new")
    elif way == "put":
        files.put(other, str(path))
    elif way == "get":
        files.get(str(other), path)
    else:
        path.unlink()  # by somebody who knows nothing of checksums
        files.rename(str(other), str(path))
    assert [row.value for row in spark.read.text(str(path)).collect()] == ["new"]


def test_without_care_for_checksums_spark_refuses_the_new_bytes(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "part.txt"
    HadoopPath(f"file://{path}").write_bytes(b"written by Hadoop, with checksums")
    path.write_bytes(b"new")
    with pytest.raises(OSError, match="Checksum"):
        HadoopPath(f"file://{path}").put(path)


# --- A store there


def test_a_store_publishes_promotes_verifies_and_rolls_back(root: str, tmp_path: Path) -> None:
    store = ModelStore(f"{root}/a store", "seedlings")
    network = tmp_path / "network.keras"
    network.write_bytes(b"weights")
    barrier = threading.Barrier(3)

    def build(folder: str) -> None:
        files.put(network, files.join(folder, "network.keras"))
        files.write_text(files.join(folder, "model", "_SUCCESS"), "")
        barrier.wait()

    threads = [
        threading.Thread(
            target=store.publish, args=(build, {"classes": ["Maize"]}), kwargs={"promote": False}
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = [version.version for version in store.versions()]
    assert versions == ["v0001", "v0002", "v0003"]
    for version in versions:
        assert store.promote(version) == store.verify(version) == store.resolve()
    assert store.rollback().version == "v0002"
    assert names(store.directory) == ["seedlings"]
    files.write_bytes(store.resolve("v0001").network_path, b"weighte")
    with pytest.raises(StoreError, match="sha256"):
        store.verify("v0001")
    assert files.list_names(store.path) == ["current", "promotions", *versions]
