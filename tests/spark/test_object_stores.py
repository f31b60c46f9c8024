"""Images, corpora, stores and scores in an object store: a real S3 server, by Hadoop's own connector."""

import dataclasses
import datetime
import shutil
import threading
from pathlib import Path

import pytest
from pyspark import InheritableThread
from pyspark.sql import SparkSession

from seedlings_spark import files, scoring
from seedlings_spark.config import EvaluateOptions, PrepareOptions, ScoringOptions, TrainOptions
from seedlings_spark.corpus import Corpus, decoding, listings
from seedlings_spark.errors import ClusterError, CorpusError, OutputInUseError
from seedlings_spark.files import connectors
from seedlings_spark.lock import Lock
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.workflow import clean, jobs, publication
from tests import docs, s3
from tests.cluster.standalone import SCRIPT, Session, clean_environment
from tests.conftest import with_all

pytestmark = with_all


def test_what_is_written_is_read_and_nothing_else_appears(bucket: tuple[str, Path]) -> None:
    root, behind = bucket
    assert not files.renames(root) and files.renames("/tmp")
    path = f"{root}/new folder/a b%20#1 caf\N{LATIN SMALL LETTER E WITH ACUTE}.txt"
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    assert files.read_bytes(path) == b"two"
    assert [each.path for each in files.walk(root)] == [path]
    assert [each.read_bytes() for each in behind.rglob("*") if each.is_file()] == [b"two"]
    with pytest.raises(FileExistsError):
        files.create(path, b"three")
    files.create(path, b"two")  # the same again, as when the answer to a first request is lost
    assert files.read_bytes(path) == b"two"


def test_of_many_that_create_one_file_at_once_one_succeeds(bucket: tuple[str, Path]) -> None:
    root, _ = bucket
    start, done = threading.Barrier(8), list[int]()

    def create(number: int) -> None:
        start.wait()
        try:
            files.create(f"{root}/manifest.json", f"{number}".encode())
        except FileExistsError:
            return
        done.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f"{number}".encode() for number in done] == [files.read_bytes(f"{root}/manifest.json")]


def test_a_lock_keeps_others_out(bucket: tuple[str, Path]) -> None:
    folder = f"{bucket[0]}/output"
    with Lock(folder, "one") as lock:
        with pytest.raises(OutputInUseError), Lock(folder, "two"):
            pass
        lock.check()
    with Lock(folder, "three"):
        pass


def test_a_missing_connector_is_named_with_its_version(spark: SparkSession) -> None:
    version = s3.hadoop_version()
    with pytest.raises(ClusterError, match=f"Give org.apache.hadoop:hadoop-azure:{version} to --packages"):
        files.exists("abfss://container@account.dfs.core.windows.net/images")
    missing = RuntimeError("ClassNotFoundException: Class org.apache.hadoop.fs.s3a.S3AFileSystem not found")
    with pytest.raises(ClusterError, match=r"Give org.apache.hadoop:hadoop-aws:3.9.9 to --packages"):
        connectors.refuse_missing("s3a://bucket/images", missing, "3.9.9")
    with pytest.raises(ClusterError, match="Write s3a://bucket/images"):
        files.exists("s3://bucket/images")
    with pytest.raises(ClusterError, match="gcs-connector of Google, in its newest version for Hadoop 3"):
        files.exists("gs://bucket/images")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of 12 classes over 32x32 pixels, untrained."""
    import keras

    keras.utils.set_random_seed(1)
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(12, activation="softmax")]
    file = tmp_path_factory.mktemp("network") / "network.keras"
    keras.Sequential([keras.Input((32, 32, 3)), *layers]).save(file)
    return file


@pytest.fixture
def version(bucket: tuple[str, Path], network: Path) -> ModelVersion:
    store = ModelStore(f"{bucket[0]}/store", "seedlings")
    classes = [f"species {number}" for number in range(12)]
    return publication.import_network(store, str(network), classes, aspect="crop", promote=True)


def put_images(behind: Path, drawn_images: Path) -> int:
    """Images and what is none as objects; how many there are."""
    images = behind / "images"
    shutil.copytree(drawn_images, images)
    species = min(images.iterdir())
    shutil.copy(min(species.iterdir()), species / "_hidden caf\N{LATIN SMALL LETTER E WITH ACUTE}.png")
    (species / "bad one%20#1.png").write_bytes(b"no picture")
    (species / "_empty.png").touch()
    return sum(each.is_file() for each in images.rglob("*"))


def test_a_corpus_is_the_same_as_from_local_disks(
    spark: SparkSession, bucket: tuple[str, Path], drawn_images: Path, tmp_path: Path
) -> None:
    root, behind = bucket
    count = put_images(behind, drawn_images)
    options = PrepareOptions(f"{root}/images", corpus=f"{root}/corpus", image_size=32)
    made = jobs.prepare(spark, options)
    here = jobs.prepare(
        spark, PrepareOptions(str(behind / "images"), corpus=str(tmp_path / "c"), image_size=32)
    )
    assert made.fingerprint == here.fingerprint
    assert made.manifest["listed"] == count == here.manifest["listed"]
    assert (
        made.manifest["rejected_by_reason"]
        == here.manifest["rejected_by_reason"]
        == {"empty": 1, "not_an_image": 1}
    )
    assert made.images(spark).count() == count - 2 and made.rejects(spark).count() == 2
    # The manifest lists the files of its tables, and nothing else is left.
    tables_of = files.name(made.tables_path)
    found = {each.path.removeprefix(f"{made.tables_path}/") for each in files.walk(made.tables_path)}
    assert {each for each in found if not files.name(each).startswith("_")} == set(made.manifest["files"])
    assert sorted(files.list_names(f"{root}/corpus")) == ["manifest.json", tables_of]
    with pytest.raises(CorpusError, match="already holds a corpus"):
        jobs.prepare(spark, options)
    # A run of training has its folder there too, and so has the report.
    training = TrainOptions(made.path, store=f"{root}/store", run=f"{root}/run", epochs=1, num_workers=1)
    assert jobs.train(spark, training).version == "v0001"
    assert jobs.train(spark, training).published is None  # it had ended
    jobs.evaluate(spark, EvaluateOptions(made.path, store=f"{root}/store", report=f"{root}/report"))
    assert {"index.html", "metrics.json"} <= set(files.list_names(f"{root}/report"))
    again = jobs.prepare(spark, dataclasses.replace(options, overwrite=True))
    assert again.fingerprint == made.fingerprint and again.tables_path != made.tables_path
    assert sorted(files.list_names(f"{root}/corpus")) == ["manifest.json", files.name(again.tables_path)]


def test_executors_read_objects_themselves_and_keys_stay_out_of_plans(
    spark: SparkSession, bucket: tuple[str, Path], s3_server: s3.Server, drawn_images: Path
) -> None:
    root, behind = bucket
    count = put_images(behind, drawn_images)
    listed = list(listings.walk(f"{root}/images", by_folder=True))
    here = [each.path for each in files.walk(files.qualify(str(behind / "images")))]
    assert [each.path for each in listed] == [f"{root}{path.partition(behind.name)[2]}" for path in here]
    gone, shrunk = (behind / each.path.removeprefix(root).lstrip("/") for each in (listed[-1], listed[-2]))
    listing = listings.listing_table(spark, listed).persist()
    gone.unlink()
    shrunk.write_bytes(shrunk.read_bytes()[:-1])
    task = decoding.DecodeTask((16, 16), "crop", ("png",), 10**6, 10**6)
    decoded = decoding.decode_all(spark, listing, f"{root}/images", task)
    plan = decoded._jdf.queryExecution().toString()
    assert "MapInArrow" in plan and "binaryFile" not in plan and "Join" not in plan
    assert s3_server.secret_key not in plan and s3_server.access_key not in plan
    reasons = {files.name(row.path): row.reason for row in decoded.where("reason is not null").collect()}
    assert reasons == {
        "_empty.png": "empty",
        "bad one%20#1.png": "not_an_image",
        gone.name: "unreadable",
        shrunk.name: "changed",
    }
    assert decoded.where("image is not null").count() == count - 4
    listing.unpersist()


def test_of_two_that_prepare_one_corpus_one_succeeds(
    spark: SparkSession, bucket: tuple[str, Path], drawn_images: Path
) -> None:
    root, behind = bucket
    shutil.copytree(drawn_images, behind / "images")
    options = PrepareOptions(f"{root}/images", corpus=f"{root}/corpus", image_size=16)
    outcomes = list[Corpus | OutputInUseError]()

    def prepare() -> None:
        try:
            outcomes.append(jobs.prepare(spark, options))
        except OutputInUseError as error:
            outcomes.append(error)

    threads = [InheritableThread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (made,) = (each for each in outcomes if isinstance(each, Corpus))
    assert len(outcomes) == 2 and made.images(spark).count() == made.manifest["listed"] == 96
    assert sorted(files.list_names(f"{root}/corpus")) == ["manifest.json", files.name(made.tables_path)]


def test_the_command_of_the_docs_finds_its_keys_and_tells_nobody(
    s3_server: s3.Server, drawn_images: Path, tmp_path: Path
) -> None:
    root, behind = s3_server.bucket()
    shutil.copytree(drawn_images, behind / "photos")
    here = {
        "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...\n": "",
        "./spark-submit.sh --packages org.apache.hadoop:hadoop-aws:VERSION": f"{SCRIPT} --master 'local[2]'",
        "https://store.example.org": s3_server.endpoint,
        "s3a://plants": root,
    }
    command = docs.command("docs/object-stores.md", "Commands", here)
    jars = {"SPARK_DIST_CLASSPATH": f"{s3.connector()}/*"}
    environment = {**clean_environment(), **s3_server.variables(), **jars}
    with Session(["bash", "-c", command], environment, tmp_path, tmp_path / "log") as job:
        assert job.wait() == 0, job.said()
    assert "published s3a://" in job.said() and s3_server.secret_key not in job.said()
    assert (behind / "corpus" / "manifest.json").exists()


def test_versions_get_numbers_of_their_own(bucket: tuple[str, Path]) -> None:
    root, _ = bucket
    store = ModelStore(f"{root}/store", "seedlings")

    def publish() -> str:
        def build(folder: str) -> None:
            files.write_bytes(f"{folder}/network.keras", b"network")
            files.write_bytes(f"{folder}/model/metadata/part-00000", b"{}")

        return store.publish(build, {"classes": ["a", "b"]}).version

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.version for each in store.versions()] == ["v0001", "v0002", "v0003"]
    for each in store.versions():
        each.check_files()
    # One who has claimed a number and is dead leaves no version, and the number is not used again.
    files.create(f"{store.path}/v0004/.claim", b".building-dead")
    files.write_text(f"{store.path}/v0004/network.keras", "half")
    assert publish() == "v0005" and store.left_behind() == [f"{store.path}/v0004"]
    store.remove_left_behind(f"{store.path}/v0004")
    assert store.left_behind() == [] and publish() == "v0006"
    assert store.rollback().version == "v0005" and store.delete("v0006") > 0


def test_runs_are_scored_and_cleaned(
    spark: SparkSession, bucket: tuple[str, Path], version: ModelVersion, drawn_images: Path
) -> None:
    root, behind = bucket
    count = put_images(behind, drawn_images)
    options = ScoringOptions(f"{root}/images", output=f"{root}/scores", incremental=True, run_id="one")
    first = scoring.score(spark, version, options)
    assert (first.manifest["listed"], first.manifest["scored"]) == (count, count - 2)
    again = scoring.score(spark, version, options)
    assert not again.is_new and again.manifest["tables"] == first.manifest["tables"]
    (min((behind / "images").iterdir()) / "new.png").write_bytes(
        next(drawn_images.rglob("*.png")).read_bytes()
    )
    second = scoring.score(spark, version, dataclasses.replace(options, run_id="two"))
    assert (second.manifest["scored"], second.manifest["already_scored"]) == (1, count - 2)
    latest = scoring.latest(spark, f"{root}/scores", "")
    assert latest.count() == count - 1
    assert {row[0]: row[1] for row in latest.groupBy("run").count().collect()} == {"one": count - 2, "two": 1}
    # What a dead run has left goes with the next one; a run whose files were scored again goes with `clean`.
    files.write_text(f"{root}/scores/tables/one-00000000/predictions/part-0.parquet", "half")
    files.write_text(f"{root}/scores/tables/dead-00000000/predictions/part-0.parquet", "half")
    scoring.score(spark, version, dataclasses.replace(options, run_id="three", incremental=False))
    assert len(files.list_names(f"{root}/scores/tables")) == 3
    clean.clean_output(spark, f"{root}/scores", datetime.timedelta(0), dry=False)
    assert Runs(f"{root}/scores").names() == ["three"] and len(files.list_names(f"{root}/scores/tables")) == 1
    assert scoring.latest(spark, f"{root}/scores", "").count() == count - 1
