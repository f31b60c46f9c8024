"""Paths and whole files on the local file system, without a JVM."""

import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given

from seedlings_spark import files
from seedlings_spark.errors import ClusterError
from tests.conftest import HANG_SECONDS
from tests.texts import texts

HOSTILE_NAMES = [
    "a file",
    " leading and trailing ",
    'it\'s "quoted"',
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
    "e\N{COMBINING ACUTE ACCENT}",  # the same letter, other bytes
    "100%",
    "a%20b",
    "50%25",
    "#1",
    "why?",
    "line\nbreak",
    "seedling \N{SEEDLING}",
    "12:30.png",
    "back\\slash",
    "{a,b}[0-9]*",
    "_hidden",
    ".hidden",
    "\N{CJK UNIFIED IDEOGRAPH-7A2E}",
    "n" * 255,
]

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")


# --- Paths


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_qualified_path_names_the_same_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    uri = files.qualify(str(path))
    assert uri == f"file://{path}"
    assert files.local_path(uri) == path
    assert files.read_bytes(uri) == b"x"
    assert files.qualify(uri) == uri


@given(texts(without="/\0", min_size=1))
def test_any_name_survives_the_way_through_a_path(name: str) -> None:
    if name in (".", ".."):
        return
    path = files.join("/data", name)
    assert files.name(path) == name
    assert files.parent(path) == "/data"
    assert files.local_path(files.qualify(path)) == Path("/data") / name


def test_percent_signs_are_part_of_a_name_and_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "a b").write_text("decoded")
    (tmp_path / "a%20b").write_text("as it is")
    assert files.read_text(f"file://{tmp_path}/a%20b") == "as it is"


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/data/x", "file:///data/x"),
        ("//data//x/", "file:///data/x"),
        ("/data/./a/../x", "file:///data/x"),
        ("file:/data/x", "file:///data/x"),
        ("file:///data/x", "file:///data/x"),
        ("file://localhost/data/x", "file:///data/x"),
        ("FILE:/data/x", "file:///data/x"),
        ("file:/", "file:///"),
    ],
)
def test_local_paths_have_one_qualified_form(path: str, uri: str) -> None:
    assert files.qualify(path) == uri


def test_a_relative_path_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.qualify("12:30.png") == f"file://{tmp_path}/12:30.png"
    assert files.qualify("../x") == f"file://{tmp_path.parent}/x"


@pytest.mark.parametrize("path", ["", "file:data/x", "file://elsewhere/data/x", "file:"])
def test_a_malformed_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|URI|machine"):
        files.qualify(path)


def test_other_file_systems_are_not_local() -> None:
    assert not files.is_local("hdfs://namenode:8020/data")
    assert not files.is_local("s3a://bucket/data")
    assert files.is_local("data")
    assert files.is_local("file:///data")
    with pytest.raises(ValueError, match="not on the local file system"):
        files.local_path("hdfs://namenode/data")


def test_another_file_system_without_an_application_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyspark.SparkContext._active_spark_context", None)
    with pytest.raises(ClusterError, match=r"hdfs://namenode/data is not a local path.*Start the session"):
        files.exists("hdfs://namenode/data")


@pytest.mark.parametrize(
    ("base", "joined", "name", "parent"),
    [
        ("/data", "/data/a/b", "data", "/"),
        ("/", "/a/b", "", "/"),
        ("data", "data/a/b", "data", "."),
        ("some/data/", "some/data/a/b", "data", "some"),
        ("file:///", "file:///a/b", "", "file:///"),
        ("file:/data", "file:/data/a/b", "data", "file:/"),
        ("hdfs://node", "hdfs://node/a/b", "", "hdfs://node/"),
        ("hdfs://node/data/", "hdfs://node/data/a/b", "data", "hdfs://node/"),
    ],
)
def test_join_name_and_parent_agree(base: str, joined: str, name: str, parent: str) -> None:
    assert files.join(base, "a", "b") == joined
    assert files.join(base, "a/b") == joined
    assert files.name(base) == name
    assert files.parent(base) == parent
    assert files.name(joined) == "b"
    assert files.parent(files.parent(joined)).rstrip("/") == base.rstrip("/")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "a/../../b"])
def test_what_is_joined_stays_below(name: str) -> None:
    with pytest.raises(ValueError, match="not a name below"):
        files.join("/data", name)


# --- Whole files


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_what_is_written_is_read_under_any_name(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/new folder/{name}"
    files.write_text(path, "caf\N{LATIN SMALL LETTER E WITH ACUTE}\r\n")
    assert files.read_bytes(path) == b"caf\xc3\xa9\r\n"
    assert files.read_text(path) == "caf\N{LATIN SMALL LETTER E WITH ACUTE}\r\n"
    assert files.size(path) == 7
    assert files.list_names(f"{tmp_path}/new folder") == [name]
    files.delete(path)
    assert not files.exists(path)


def test_a_file_larger_than_a_block_is_read_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * (files.BLOCK_SIZE // 256) + b"end"
    files.write_bytes(f"{tmp_path}/large", data)
    assert [len(block) for block in files.read_blocks(f"{tmp_path}/large")] == [files.BLOCK_SIZE, 3]
    assert files.read_bytes(f"{tmp_path}/large") == data


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = f"{tmp_path}/manifest.json"
    files.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*(os, "fsync") if step == "fsync" else (Path, "replace"), fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert files.read_text(path) == "old"
    assert files.list_names(str(tmp_path)) == ["manifest.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text("old")
    program = (
        "import os, signal, sys\n"
        "from seedlings_spark import files\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_text(sys.argv[1], 'new' * 100_000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, timeout=HANG_SECONDS)
    assert killed.returncode == -9
    assert path.read_text() == "old"
    assert [each.name[:5] for each in tmp_path.iterdir() if each != path] == [".tmp-"]


def test_of_two_writers_one_wins_and_a_reader_never_sees_a_mixture(tmp_path: Path) -> None:
    path = f"{tmp_path}/current"
    contents = {"a" * 300_000, "b" * 300_000}
    files.write_text(path, min(contents))
    writers = [
        threading.Thread(target=lambda text=text: [files.write_text(path, text) for _ in range(30)])
        for text in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert files.read_text(path) in contents
    for writer in writers:
        writer.join()
    assert files.read_text(path) in contents
    assert files.list_names(str(tmp_path)) == ["current"]


def test_a_folder_is_not_overwritten_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_text(f"{tmp_path}/folder", "text")
    assert files.list_names(str(tmp_path)) == ["folder"]


def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("target")
    (tmp_path / "link").symlink_to("target")
    files.write_text(f"{tmp_path}/link", "new")
    assert (tmp_path / "target").read_text() == "target"
    assert files.read_text(f"{tmp_path}/link") == "new"


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    missing = f"{tmp_path}/missing"
    for function in (
        files.read_bytes,
        files.read_text,
        files.size,
        files.list_names,
        files.walk,
    ):
        with pytest.raises(FileNotFoundError):
            function(missing)
    with pytest.raises(FileNotFoundError):
        files.rename(missing, f"{tmp_path}/target")
    with pytest.raises(FileNotFoundError):
        files.put(Path(missing), f"{tmp_path}/target")
    with pytest.raises(FileNotFoundError):
        files.get(missing, tmp_path / "target")
    assert not files.exists(missing)
    assert not files.is_directory(missing)
    files.delete(missing)
    assert files.list_names(str(tmp_path)) == []


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    files.write_text(f"{tmp_path}/folder/file", "x")
    for function in (files.read_bytes, files.size):
        with pytest.raises(IsADirectoryError):
            function(f"{tmp_path}/folder")
    for function in (files.list_names, files.walk):
        with pytest.raises(NotADirectoryError):
            function(f"{tmp_path}/folder/file")
    with pytest.raises(FileExistsError):
        files.make_directory(f"{tmp_path}/folder/file")
    files.make_directory(f"{tmp_path}/folder")
    assert files.is_directory(f"{tmp_path}/folder")
    assert not files.is_directory(f"{tmp_path}/folder/file")


# --- Hadoop's checksums


def checksums_of(path: Path) -> Path:
    """Where Hadoop's LocalFileSystem keeps them; `tests/spark` has it write and check real ones."""
    return path.with_name(f".{path.name}.crc")


def test_checksums_of_the_old_bytes_go_before_the_new_bytes_come(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    for function in (
        lambda: files.write_bytes(str(path), b"new"),
        lambda: files.put(other, str(path)),
        lambda: files.get(str(other), path),
    ):
        other.write_bytes(b"other")
        checksums_of(path).write_bytes(b"crc\0old")
        function()
        assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "other"]


def test_no_checksums_are_left_where_a_file_was_or_wait_where_it_comes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x")
    checksums_of(source).write_bytes(b"crc")
    checksums_of(target).write_bytes(b"crc")
    files.rename(str(source), str(target))
    assert files.list_names(str(tmp_path)) == ["target"]
    checksums_of(target).write_bytes(b"crc")
    files.delete(str(target))
    assert files.list_names(str(tmp_path)) == []


# --- Rename and delete


@pytest.mark.parametrize("source", ["file", "folder", "link"])
@pytest.mark.parametrize("target", ["file", "empty folder", "full folder", "dangling link"])
def test_rename_refuses_whatever_is_at_the_target(tmp_path: Path, source: str, target: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    if source == "folder":
        old.mkdir()
        (old / "inside").write_text("old")
    elif source == "link":
        old.symlink_to("elsewhere")
    else:
        old.write_text("old")
    if target == "file":
        new.write_text("new")
    elif target == "dangling link":
        new.symlink_to("nowhere")
    else:
        new.mkdir()
        if target == "full folder":
            (new / "inside").write_text("new")
    with pytest.raises(FileExistsError):
        files.rename(str(old), str(new))
    assert os.path.lexists(old)
    assert (new.is_dir(), new.is_symlink()) == ("folder" in target, "link" in target)


@pytest.mark.parametrize("hard_links", [True, False])
def test_rename_moves_files_and_folders_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    files.write_text(f"{tmp_path}/a/b/file", "x")
    files.rename(f"{tmp_path}/a/b/file", f"{tmp_path}/a/b/renamed")
    files.rename(f"{tmp_path}/a", f"{tmp_path}/c")
    assert [status.path for status in files.walk(str(tmp_path))] == [f"{tmp_path}/c/b/renamed"]
    with pytest.raises(FileNotFoundError):
        files.rename(f"{tmp_path}/c", f"{tmp_path}/no/such/folder")


def test_of_many_folders_renamed_to_one_name_one_gets_it(tmp_path: Path) -> None:
    for number in range(8):
        files.write_text(f"{tmp_path}/{number}/file", str(number))
    barrier = threading.Barrier(8)
    outcomes: dict[int, str] = {}

    def publish(number: int) -> None:
        barrier.wait()
        try:
            files.rename(f"{tmp_path}/{number}", f"{tmp_path}/published")
            outcomes[number] = "won"
        except FileExistsError:
            outcomes[number] = "lost"

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes.values()) == ["lost"] * 7 + ["won"]
    winner = next(number for number, outcome in outcomes.items() if outcome == "won")
    assert files.read_text(f"{tmp_path}/published/file") == str(winner)
    assert len(files.list_names(str(tmp_path))) == 8


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_comes_to_the_target_after_the_look_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    inside = "" if kind == "file" else "/inside"
    for name in ("old", "new"):
        files.write_text(f"{tmp_path}/{name}{inside}", name)
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    with pytest.raises(FileExistsError):
        files.rename(f"{tmp_path}/old", f"{tmp_path}/new")
    for name in ("old", "new"):
        assert files.read_text(f"{tmp_path}/{name}{inside}") == name


def test_a_link_is_deleted_and_not_what_it_leads_to(tmp_path: Path) -> None:
    files.write_text(f"{tmp_path}/kept/file", "x")
    files.make_directory(f"{tmp_path}/folder")
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    files.delete(f"{tmp_path}/link")
    files.delete(f"{tmp_path}/folder")
    assert [status.path for status in files.walk(str(tmp_path))] == [f"{tmp_path}/kept/file"]


@pytest.mark.parametrize("path", ["/", "//", "file:///", "/data/.."])
def test_the_root_of_a_file_system_is_never_deleted(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("would have deleted the root")

    monkeypatch.setattr("shutil.rmtree", fail)
    with pytest.raises(ValueError, match="root"):
        files.delete(path)


# --- Copies


def test_a_folder_is_put_and_got_whole_with_hidden_and_empty_files(tmp_path: Path) -> None:
    local = tmp_path / "local"
    for name in ["sub/.hidden", "sub/_SUCCESS", "it's 100% \N{SEEDLING}"]:
        files.write_text(f"{local}/{name}", "")
    files.put(local, f"{tmp_path}/store/copy")
    files.get(f"{tmp_path}/store/copy", tmp_path / "back")
    for root in (f"{tmp_path}/store/copy", f"{tmp_path}/back"):
        assert [status.path[len(root) + 1 :] for status in files.walk(root)] == [
            "it's 100% \N{SEEDLING}",
            "sub/.hidden",
            "sub/_SUCCESS",
        ]
    with pytest.raises(FileExistsError):
        files.put(local, f"{tmp_path}/store/copy")
    with pytest.raises(FileExistsError):
        files.get(f"{tmp_path}/store/copy", tmp_path / "back")
    assert files.list_names(f"{tmp_path}/store") == ["copy"]


def test_a_copy_that_fails_leaves_the_old_file_or_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_text(f"{tmp_path}/local/file", "new")
    files.write_text(f"{tmp_path}/store/file", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        files.put(tmp_path / "local" / "file", f"{tmp_path}/store/file")
    with pytest.raises(OSError, match="No space left"):
        files.put(tmp_path / "local", f"{tmp_path}/store/folder")
    assert files.list_names(f"{tmp_path}/store") == ["file"]
    assert files.read_text(f"{tmp_path}/store/file") == "old"


# --- Listings


def test_walk_lists_every_file_in_the_order_of_the_paths(tmp_path: Path) -> None:
    names = [
        "a b",
        "a/z",
        "a/.crc",
        "a.png",
        "ab",
        "_SUCCESS",
        ".hidden/x",
        "deep/er/still/x",
        "Z",
        "\N{SEEDLING}",
    ]
    for name in [*names, *(f"names/{name}" for name in HOSTILE_NAMES)]:
        files.write_text(f"{tmp_path}/{name}", "")
    (tmp_path / "an empty folder").mkdir()
    (tmp_path / "Z").write_bytes(b"123")
    os.utime(tmp_path / "Z", (0, 1234567890.5))
    listed = list(files.walk(str(tmp_path)))
    paths = [f"{tmp_path}/{name}" for name in [*names, *(f"names/{name}" for name in HOSTILE_NAMES)]]
    assert [status.path for status in listed] == sorted(paths)
    assert {status.error for status in listed} == {None}
    assert files.FileStatus(f"{tmp_path}/Z", 3, 1234567890.5) in listed
    assert sum(status.length for status in listed) == 3


def test_walked_paths_have_the_form_of_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_text(f"{tmp_path}/a/b", "")
    monkeypatch.chdir(tmp_path)
    for root in (f"file:{tmp_path}", f"file://{tmp_path}", str(tmp_path), "."):
        assert [status.path for status in files.walk(root)] == [f"{root}/a/b"]
    assert [status.path for status in files.walk("a/")] == ["a/b"]


def test_walk_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    files.write_text(f"{tmp_path}/elsewhere/x", "123")
    files.write_text(f"{tmp_path}/root/sub/y", "")
    root = tmp_path / "root"
    (root / "file").symlink_to(tmp_path / "elsewhere" / "x")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "sub" / "up").symlink_to(root)
    (root / "sub" / "self").symlink_to(root / "sub")
    assert [
        (status.path[len(str(root)) + 1 :], status.length, status.error) for status in files.walk(str(root))
    ] == [
        ("file", 3, None),
        ("folder/x", 3, None),
        ("sub/y", 0, None),
    ]


def test_what_cannot_be_read_is_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "fine").write_bytes(b"")
    errors = {files.name(status.path): status.error for status in files.walk(str(tmp_path))}
    assert errors == {
        "dangling": "dangling link",
        "fine": None,
        "loop": "Too many levels of symbolic links",
        "pipe": "not a regular file",
    }


def test_names_that_are_not_utf8_are_listed_with_the_reason(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/stra\xdfe"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/b\xe4ume.png")).write_bytes(b"123")
    Path(os.fsdecode(folder + b"/tree.png")).write_bytes(b"1234")
    listed = [(status.path, status.length, status.error) for status in files.walk(str(tmp_path))]
    assert listed == [
        (f"{tmp_path}//stra\\xdfe//b\\xe4ume.png", 3, "the name is not UTF-8"),
        (f"{tmp_path}//stra\\xdfe/tree.png", 4, "the name is not UTF-8"),
    ]
    for path, _, _ in listed:
        path.encode("utf-8")


def test_no_two_files_are_listed_under_one_path(tmp_path: Path) -> None:
    names = [
        b"\xff.png",
        rb"\xff.png",
        rb"\\xff.png",
        b"\\\xff.png",
        b"\xff\\xff",
        b"\\xff\xff",
        b"\xed\xa0\x80",
        rb"\xed",
    ]
    names += [
        "é".encode(),
        "e\u0301".encode(),
        b"a\nb",
        b"a\rb",
        b"a\tb",
        rb"a\nb",
        b"%C3%A9",
        b"12:30.png",
        b" ",
        b"x ",
    ]
    for folder in (b"", b"/\xff", rb"/\xff", b"/\xff/\xff"):
        Path(os.fsdecode(os.fsencode(tmp_path) + folder)).mkdir(exist_ok=True)
        for name in names:
            path = Path(os.fsdecode(os.fsencode(tmp_path) + folder + b"/" + name))
            if not path.exists():
                path.write_bytes(b"")
    paths = [status.path for status in files.walk(str(tmp_path))]
    there = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(set(paths)) == len(paths) == len(there) > 60
    assert paths == sorted(paths)
    # What can be opened is listed under the path that opens it, and nothing else is.
    readable = {str(path) for path in there if os.fsencode(path).decode("utf-8", "ignore") == str(path)}
    assert {path for path in paths if Path(path).is_file() and "//" not in path} == readable


@needs_permissions
def test_folders_and_files_without_permission_are_listed_with_the_reason(tmp_path: Path) -> None:
    files.write_text(f"{tmp_path}/closed/x", "")
    files.write_text(f"{tmp_path}/secret", "123")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "secret").chmod(0)
    try:
        listed = [
            (files.name(status.path), status.length, status.error) for status in files.walk(str(tmp_path))
        ]
        assert listed == [("closed", 0, "Permission denied"), ("secret", 3, "Permission denied")]
        with pytest.raises(PermissionError):
            files.walk(f"{tmp_path}/closed")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_vanishes_during_the_walk_is_listed_with_the_reason(tmp_path: Path) -> None:
    files.write_text(f"{tmp_path}/a", "")
    files.write_text(f"{tmp_path}/b/x", "")
    walk = files.walk(str(tmp_path))
    assert next(walk).path == f"{tmp_path}/a"
    files.delete(f"{tmp_path}/b")
    assert [(status.path, status.error) for status in walk] == [
        (f"{tmp_path}/b", "No such file or directory")
    ]


def test_folders_nested_deeper_than_pythons_stack_are_walked(tmp_path: Path) -> None:
    path = f"{tmp_path}/{'r/' * 300}leaf"
    files.write_text(path, "")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        listed = list(files.walk(str(tmp_path)))
    finally:
        sys.setrecursionlimit(limit)
    assert [status.path for status in listed] == [path]


def test_an_empty_folder_has_no_files(tmp_path: Path) -> None:
    assert list(files.walk(str(tmp_path))) == []
    assert files.list_names(str(tmp_path)) == []
