"""A last layer on features that are computed once: what it gives, and that they are not computed again."""

import collections
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.spatial
from pyspark.sql import SparkSession

import seedlings_spark as ss
from seedlings_spark import corpus, files, images, schema
from seedlings_spark.config import ExploreOptions
from seedlings_spark.corpus import decoding, synthetic
from seedlings_spark.errors import CorpusError, InputError, NetworkError, OptionError
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel
from seedlings_spark.models import networks
from seedlings_spark.workflow import explore, folds, pipeline, predicting, search, transfer
from tests import docs
from tests.conftest import with_all

NETWORK = "efficientnet-lite0"
CLASSES = synthetic.SPECIES[:3]


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> corpus.Corpus:
    folder = tmp_path_factory.mktemp("transfer")
    draw = np.random.default_rng(0)
    for number, species in enumerate(CLASSES):
        for place in range(10):
            file = folder / "images" / species / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 80, (32, 32, 3), dtype=np.uint8)
            pixels[..., number] += 120  # red, green, blue: a backbone tells them apart
            file.write_bytes(images.encode_png(pixels))
    return dataset(spark, folder, (0.5, 0.3, 0.2))


def dataset(spark: SparkSession, folder: Path, shares: tuple[float, ...]) -> corpus.Corpus:
    task = decoding.DecodeTask((32, 32), "stretch", images.FORMATS, 10_000, 100_000)
    rule = corpus.SplitRule(dict(zip(schema.SPLITS, shares, strict=True)), "stratified")
    paths = [files.qualify(str(folder / name)) for name in ("images", f"corpus of {shares}")]
    return corpus.prepare(spark, *paths, task, rule)


def test_the_head_is_trained_on_features_that_are_computed_once(
    spark: SparkSession, prepared: corpus.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted() -> tuple[SeedlingsModel, object]:
        network = pipeline.named_network(NETWORK, prepared, "imagenet", 0)
        estimator = SeedlingsEstimator(
            loss="sparse_categorical_crossentropy",
            optimizer_config=pipeline.optimizer("adam", 0.01),
            epochs=8,
            batch_size=4,
        )
        kept = transfer.Kept(network, files.qualify(str(tmp_path)))
        model = transfer.fit(spark, estimator, prepared, kept)
        return model.stages[-1], model.transform(prepared.images(spark, schema.TEST)).collect()

    model, rows = fitted()
    assert model.getFeaturesCol() == schema.IMAGE and len(model.history["val_loss"]) == 8
    # By hand: the published backbone, and the layer that was trained.
    backbone = pipeline.named_network(NETWORK, prepared, "imagenet", 1)
    kernel, bias = model.get_model().layers[-1].get_weights()
    for ours, theirs in zip(model.get_model().weights[:-2], backbone.weights[:-2], strict=True):
        assert "seed" in ours.path or np.array_equal(ours, theirs)
    pixels = np.stack([np.frombuffer(row.image, np.uint8).reshape(32, 32, 3) for row in rows])
    pooled = keras.Model(backbone.inputs, backbone.get_layer("features").output)
    logits = np.asarray(pooled(pixels.astype("float32"))) @ kernel + bias
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose([row.probability.toArray() for row in rows], expected, atol=1e-4)
    assert np.mean([row.predicted_species == row.species for row in rows]) > 0.6

    def featurizer(*args: object, **given: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(SeedlingsModel, "featurizer", featurizer)
    again, _ = fitted()
    assert np.array_equal(again.get_model().layers[-1].get_weights()[0], kernel)
    # The same pictures, of which others are held out, have a place of their own.
    other = dataset(spark, Path(files.local_path(prepared.path)).parent, (0.3, 0.4, 0.3))
    assert other.fingerprint == prepared.fingerprint
    network = pipeline.named_network(NETWORK, prepared, "imagenet", 0)
    kept = transfer.Kept(network, files.qualify(str(tmp_path)))
    places = [transfer.place_of(each, kept) for each in (prepared, other)]
    assert [files.is_directory(place) for place in places] == [True, False]


def test_a_head_on_stages_is_trained_on_each_view_of_the_training_images(
    spark: SparkSession, prepared: corpus.Corpus, tmp_path: Path
) -> None:
    given = {"corpus": prepared.path, "network": NETWORK, "weights": "imagenet", "precision": "float32"}
    given |= {"fine_tune": "head", "head_on": "stages", "batch_size": 8, "epochs": 3, "learning_rate": 0.01}
    options = ss.TrainOptions(**given, store=str(tmp_path), keep="last")  # type: ignore[arg-type]
    version = ss.train(spark, options).published
    assert version is not None
    # By hand: the published backbone's stages, of each of the eight symmetries of a picture.
    backbone = pipeline.named_network(NETWORK, prepared, "imagenet", 0)
    stages = [backbone.get_layer(f"block{number}_add").output for number in (2, 4, 10, 14)]
    shown = keras.Model(backbone.inputs, [each for each in stages if each.shape[1] > 1])

    def features(pixels: np.ndarray) -> np.ndarray:
        found = [np.asarray(each) for each in shown(pixels.astype("float32"))]
        return np.concatenate(
            [pool(each, axis=(1, 2)) for each in found for pool in (np.mean, np.max)], axis=1
        )

    def of(split: str) -> tuple[np.ndarray, list[str]]:
        rows = prepared.images(spark, split).collect()
        pixels = [np.frombuffer(row.image, np.uint8).reshape(32, 32, 3) for row in rows]
        return np.stack(pixels), [row.content_hash for row in rows]

    (table,) = (path for path in (tmp_path / "seedlings" / "features").glob("*/*") if path.is_dir())
    kept = collections.defaultdict(list)
    for row in spark.read.parquet(str(table)).collect():
        kept[row.content_hash].append(row.features)
    (train, names), (held_out, others) = of(schema.TRAIN), of(schema.VALIDATION)
    seen = [train, train.swapaxes(1, 2)]
    seen = [
        turned for each in seen for turned in (each, each[:, ::-1], each[:, :, ::-1], each[:, ::-1, ::-1])
    ]
    expected = np.stack([features(each) for each in seen], axis=1)
    assert set(kept) == {*names, *others}
    for name, views in zip(names, expected, strict=True):
        np.testing.assert_allclose(np.sort(kept[name], axis=0), np.sort(views, axis=0), rtol=1e-3, atol=1e-3)
    for name, view in zip(others, features(held_out), strict=True):
        assert min(np.abs(np.array(each) - view).max() for each in kept[name]) < 1e-3 * np.abs(view).max()
    model = predicting.load(version).stages[-1].get_model()
    kernel, bias = model.layers[-1].get_weights()
    every = expected.reshape(-1, expected.shape[-1])
    std = every.std(axis=0)
    tested, _ = of(schema.TEST)
    logits = (features(tested) - every.mean(axis=0)) / np.where(std > 0, std, 1) @ kernel + bias
    found = np.log(np.asarray(model(tested.astype("float32"))))
    np.testing.assert_allclose(found - found[:, :1], logits - logits[:, :1], rtol=0.01, atol=0.02)
    # It was trained as it answers: the last loss is that of the whole network.
    truth = [row.species for row in prepared.images(spark, schema.VALIDATION).collect()]
    shares = np.asarray(model(held_out.astype("float32")))
    right = shares[np.arange(len(truth)), [prepared.classes.index(each) for each in truth]]
    assert version.manifest["metrics"]["val_loss"] == pytest.approx(-np.log(right).mean(), rel=0.01)
    # Eight rows a picture, in batches of eight for one worker.
    steps = version.manifest["training"]["rows"]
    assert sum(steps) == 8 * len(train)


def test_a_search_trains_a_head_as_train_does(
    spark: SparkSession, prepared: corpus.Corpus, tmp_path: Path
) -> None:
    fixed = {"network": NETWORK, "weights": "imagenet", "fine_tune": "head", "augment": ["mirror"]}
    fixed |= {"precision": "float32", "epochs": 2, "batch_size": 8}
    text = ["[train]", *(f"{name} = {json.dumps(value)}" for name, value in fixed.items())]
    (tmp_path / "space.toml").write_text("\n".join([*text, "[space]", "learning_rate = [0.001, 0.01]"]))
    places = {"corpus": prepared.path, "store": str(tmp_path / "store"), "run": str(tmp_path / "run")}
    given: dict[str, Any] = {"trials": 2, "finalists": 1, "sample": 1.0, "parallel": 1}
    found = search.tune(spark, ss.TuneOptions(**places, space=str(tmp_path / "space.toml"), **given))
    published = ss.train(spark, found.train_options).published
    assert published is not None
    history = published.manifest["history"]
    assert {name: history[name] for name in found.best.history} == found.best.history
    (table,) = (each for each in (tmp_path / "store" / "seedlings" / "features").iterdir())
    assert len([each for each in table.iterdir() if each.is_dir()]) == 1  # the trials' and the run's


@pytest.mark.parametrize("name", ["ResNet50", "ConvNeXtTiny"])  # which has layers within layers
@pytest.mark.parametrize("head_on", ["last", "stages"])
def test_features_of_a_network_that_is_built_again_are_found(
    prepared: corpus.Corpus, name: str, head_on: str
) -> None:
    places = {
        transfer.place_of(prepared, transfer.Kept(network, "kept", count))
        for network in [pipeline.named_network(name, prepared, "none", 0, head_on=head_on) for _ in "ab"]
        for count in (1, 2)
    }
    assert len(places) == 2


@with_all
def test_in_folds_a_head_is_trained_on_each_view_of_all_other_images(
    spark: SparkSession, prepared: corpus.Corpus, tmp_path: Path
) -> None:
    given = {"corpus": prepared.path, "network": NETWORK, "weights": "imagenet", "precision": "float32"}
    given |= {"fine_tune": "head", "augment": ("mirror",), "batch_size": 8, "epochs": 2, "folds": 3}
    assert ss.train(spark, ss.TrainOptions(**given, store=str(tmp_path))).published  # type: ignore[arg-type]
    (run,) = (tmp_path / "seedlings" / "runs").iterdir()
    known = {row.path: row for row in prepared.images(spark, schema.TRAIN, schema.VALIDATION).collect()}
    rows = spark.read.parquet(str(run / "folds" / "predictions")).collect()
    assert sorted(row.path for row in rows) == sorted(known)
    (table,) = (path for path in (tmp_path / "seedlings" / "features").glob("*/*") if path.is_dir())
    assert spark.read.parquet(str(table)).count() == 2 * len(known)


@pytest.mark.parametrize(
    ("augment", "size", "views"),
    [
        (("none",), (32, 32), 1),
        (("mirror",), (32, 32), 2),
        (("flip",), (32, 32), 4),
        (("flip", "turn"), (32, 32), 8),
        (("mirror", "flip", "turn"), (32, 48), 4),  # what is not square is turned upside down only
    ],
)
def test_an_image_has_as_many_views_as_random_changes_can_make_of_it(
    augment: tuple[str, ...], size: tuple[int, int], views: int
) -> None:
    assert transfer.is_for(NETWORK, "head", augment) and transfer.num_views(augment, size) == views
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.float32)
    seen = {image.tobytes()}
    if text := networks.augmentation(augment, size):
        changing = keras.models.model_from_json(text)
        for draw in range(200):
            for place, layer in enumerate(changing.layers):
                layer.generator.state.assign([draw, place])
            seen.add(np.asarray(changing(image[None], training=True))[0].tobytes())
    assert len(seen) == views
    assert not transfer.is_for(NETWORK, "head", (*augment, "rotate")) and not transfer.is_for(
        NETWORK, "1", augment
    )


@with_all
def test_staged_training_begins_where_a_trained_head_ends(
    spark: SparkSession, prepared: corpus.Corpus, tmp_path: Path
) -> None:
    """With a learning rate that moves nothing, all that is left is the head's training: a run of its own."""
    same = {"corpus": prepared.path, "network": NETWORK, "weights": "imagenet", "precision": "float32"}
    same |= {"keep": "last", "batch_size": 8}

    def trained(name: str, **given: object) -> list[np.ndarray]:
        options = ss.TrainOptions(**same, store=str(tmp_path), name=name, **given)  # type: ignore[arg-type]
        version = ss.train(spark, options).published
        assert version is not None
        model = predicting.load(version).stages[-1].get_model()
        return [np.array(weight) for weight in model.weights if "seed" not in weight.path]

    head = trained("head", fine_tune="head", augment=("none",), epochs=transfer.HEAD_EPOCHS)
    staged = trained("staged", fine_tune="staged", epochs=1, learning_rate=1e-12)
    for ours, theirs in zip(staged, head, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    further = trained("further", fine_tune="staged", epochs=1, learning_rate=1e-3)
    moved = [float(np.abs(ours - theirs).max()) for ours, theirs in zip(further, head, strict=True)]
    paths = [weight.path for weight in pipeline.named_network(NETWORK, prepared, "none", 0).weights]
    paths = [path for path in paths if "seed" not in path]
    assert {path.split("/")[0] for path, by in zip(paths, moved, strict=True) if not by} == {
        path.split("/")[0] for path in paths if "normalization" in path
    }
    assert 0 < moved[0] < 0.3 * moved[-2]  # the first kernel, and the last


def test_features_are_those_of_the_layer_of_a_corpus_and_of_files_alike(
    spark: SparkSession, prepared: corpus.Corpus, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows = prepared.images(spark).collect()
    for row in rows[:5]:
        pixels = np.frombuffer(row.image, np.uint8).reshape(32, 32, 3)
        (photos / f"{row.content_hash}.png").write_bytes(images.encode_png(pixels))
    same = {"network": NETWORK, "image_size": 32}
    options = ss.FeaturizeOptions(corpus=prepared.path, output=str(tmp_path / "features"), **same)
    made = ss.featurize(spark, options)
    assert (made.manifest["featurized"], made.manifest["length"]) == (len(rows), 1280)

    backbone = pipeline.named_network(NETWORK, prepared, "imagenet", 0)
    pooled = keras.Model(backbone.inputs, backbone.get_layer("features").output)
    pixels = np.stack([np.frombuffer(row.image, np.uint8).reshape(32, 32, 3) for row in rows])
    expected = dict(
        zip([row.path for row in rows], np.asarray(pooled(pixels.astype("float32"))), strict=True)
    )
    found = made.features(spark).collect()
    assert {(row.path, row.species, row.split) for row in found} == {
        (row.path, row.species, row.split) for row in rows
    }
    for row in found:
        np.testing.assert_allclose(row.features, expected[row.path], atol=1e-4)

    options = ss.FeaturizeOptions(images=str(photos), output=str(tmp_path / "others"), **same)
    others = ss.featurize(spark, options)
    numbers = [others.manifest[name] for name in ("listed", "featurized", "rejected_by_reason")]
    assert numbers == [6, 5, {"truncated": 1}]
    of_hash = {row.content_hash: expected[row.path] for row in rows}
    for row in others.features(spark).collect():
        np.testing.assert_allclose(row.features, of_hash[Path(row.path).stem], atol=1e-4)
    with pytest.raises(CorpusError, match="which has features already"):
        ss.featurize(spark, options)

    _check_similar(spark, tmp_path, photos, others, {row.path: expected[row.path] for row in rows})

    # Spark ML's own methods take them.
    names: dict[str, object] = {"spark": spark}
    exec(
        docs.command(
            "docs/jobs.md", "featurize", {"features/features": f"{tmp_path}/features/features"}, "python"
        ),
        names,
    )
    assert names["right"] >= 4  # of 6


def _check_similar(
    spark: SparkSession, tmp_path: Path, photos: Path, others: Any, expected: dict[str, Any]
) -> None:
    """Of a picture of the corpus, and of a file, the most similar ones are those that SciPy finds."""
    features, names = str(tmp_path / "features"), np.array(sorted(expected))
    vectors = np.stack([expected[name] for name in names])
    cosines = 1 - scipy.spatial.distance.cdist(vectors, vectors, "cosine")
    options = ss.SimilarOptions(features=features, to=str(names[4]), top=7, output=str(tmp_path / "like"))
    found = ss.similar(spark, options)
    order = [place for place in np.argsort(-cosines[4], kind="stable") if place != 4][:7]
    assert [row["path"] for row in found.rows] == list(names[order])
    np.testing.assert_allclose([row["similarity"] for row in found.rows], cosines[4][order], atol=1e-5)
    kept = spark.read.parquet(str(tmp_path / "like")).orderBy("similarity", ascending=False).collect()
    assert [row.asDict() for row in kept] == list(found.rows)

    # A file that is not in the table goes through the network; one of its content does not.
    file = next(photos.glob("[0-9a-f]*.png"))
    outside = ss.similar(spark, replace(options, to=str(file), output="", top=1))
    assert outside.rows[0]["content_hash"] == file.stem
    assert outside.rows[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert outside.rows[0]["path"] in outside.table()
    manifest = tmp_path / "others" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(others.manifest["network_sha256"], "of another network"))
    inside = ss.similar(spark, replace(options, features=str(tmp_path / "others"), to=str(file), output=""))
    assert len(inside.rows) == 4 and files.qualify(str(file)) not in [row["path"] for row in inside.rows]
    black = tmp_path / "black.png"
    black.write_bytes(images.encode_png(np.zeros((40, 50, 3), np.uint8)))
    with pytest.raises(NetworkError, match="other weights"):
        ss.similar(spark, replace(options, features=str(tmp_path / "others"), to=str(black), output=""))
    with pytest.raises(CorpusError, match="a new folder"):
        ss.similar(spark, options)


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ('{"images": 3}', "something else"),
        ("[1]", "something else"),
        ("{", "cannot be read"),
        (None, "No such"),
    ],
)
def test_a_folder_of_something_else_is_none_of_features(
    spark: SparkSession, tmp_path: Path, manifest: str | None, why: str
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match=why):
        ss.similar(spark, ss.SimilarOptions(features=str(tmp_path), to="photo.png"))


def test_folds_hold_each_image_once_and_as_many_of_each_species(
    spark: SparkSession, prepared: corpus.Corpus
) -> None:
    images = pipeline.training_images(spark, prepared)
    whole = {row.content_hash: row for row in images.drop(schema.IMAGE).collect()}
    held_out: list[str] = []
    for fold in range(3):
        rows = folds.dealt(images, 3, fold).drop(schema.IMAGE).collect()
        assert {row.content_hash for row in rows} == set(whole) and len(rows) == len(whole) == 24
        mine = [row for row in rows if row.is_validation]
        assert all(row.split == ("validation" if row in mine else "train") for row in rows)
        counts = collections.Counter(row.species for row in mine)
        assert set(counts) == set(CLASSES) and max(counts.values()) - min(counts.values()) <= 1
        held_out += [row.content_hash for row in mine]
    assert sorted(held_out) == sorted(whole)
    with pytest.raises(OptionError, match=r"--folds 9 .* 8 images of its largest species"):
        folds.check(prepared, 9)


@with_all
def test_every_image_is_predicted_once_by_a_network_that_has_not_seen_it(
    spark: SparkSession, prepared: corpus.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()]
    network = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax", name="species")])
    (tmp_path / "small.json").write_text(network.to_json())
    places = {"corpus": prepared.path, "store": str(tmp_path / "store"), "run": str(tmp_path / "run")}
    small = {"network": str(tmp_path / "small.json"), "epochs": 4, "num_workers": 1, "learning_rate": 0.1}
    options = ss.TrainOptions(**places, **small, folds=2)  # type: ignore[arg-type]

    # It dies in the second epoch of the second fold, and is taken up there.
    record, seen = pipeline.RunRecord.on_epoch_end, []

    def counted(self: pipeline.RunRecord, epoch: int, logs: Any = None) -> None:
        seen.append(epoch)
        if len(seen) == 6:
            raise KeyboardInterrupt
        record(self, epoch, logs)

    monkeypatch.setattr(pipeline.RunRecord, "on_epoch_end", counted)
    with pytest.raises(KeyboardInterrupt):
        ss.train(spark, options)
    trained = ss.train(spark, options)
    assert seen == [0, 1, 2, 3, 0, 1, 1, 2, 3, 0, 1, 2, 3]

    place = tmp_path / "run" / "folds"
    numbers = json.loads((place / "folds.json").read_text())
    rows = spark.read.parquet(str(place / "predictions")).collect()
    own = prepared.images(spark, schema.TRAIN, schema.VALIDATION).collect()
    assert sorted(row.path for row in rows) == sorted(row.path for row in own) and len(own) == 24
    for fold in range(2):
        mine = [row for row in rows if row.fold == fold]
        assert collections.Counter(row.species for row in mine) == dict.fromkeys(CLASSES, 4)
        right = np.mean([row.predicted_species == row.species for row in mine])
        # What the workers have measured on the rows that they held out.
        *_, last = (place / str(fold) / "metrics.jsonl").read_text().splitlines()
        assert json.loads(last)["val_accuracy"] == pytest.approx(right)
        assert numbers["accuracy"]["of_fold"][fold] == right
        for row, truth in enumerate(numbers["classes"]):
            found = collections.Counter(each.predicted_species for each in mine if each.species == truth)
            confusion = dict(zip(numbers["classes"], numbers["confusion_of_fold"][fold][row], strict=True))
            assert found == {name: count for name, count in confusion.items() if count}
    assert numbers["accuracy"]["deviation"] == pytest.approx(np.std(numbers["accuracy"]["of_fold"], ddof=1))
    assert trained.published is not None
    assert trained.published.manifest["folds"]["accuracy"] == numbers["accuracy"]

    looking = ExploreOptions(prepared.path, str(tmp_path / "report"), predictions=str(place / "predictions"))
    about = explore(spark, looking).about_suspects
    assert (about["looked_at"], about["splits"]) == (24, [schema.TRAIN, schema.VALIDATION])


@with_all
def test_a_curriculum_by_loss_gives_the_same_bits_with_any_number_of_workers(
    spark: SparkSession, prepared: corpus.Corpus, tmp_path: Path
) -> None:
    layers = [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()]
    network = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax", name="species")])
    (tmp_path / "small.json").write_text(network.to_json())

    def trained(name: str, **given: Any) -> tuple[list[Any], ss.ModelVersion]:
        version = ss.train(
            spark,
            ss.TrainOptions(
                corpus=prepared.path,
                store=str(tmp_path / name),
                run=str(tmp_path / f"run of {name}"),
                network=str(tmp_path / "small.json"),
                epochs=4,
                learning_rate=0.1,
                shards=2,
                **given,
            ),
        ).published
        assert version is not None
        return predicting.load(version).stages[-1].get_model().get_weights(), version

    plain, _ = trained("plain", num_workers=1)
    one, version = trained("one", num_workers=1, curriculum="loss")
    two, _ = trained("two", num_workers=2, curriculum="loss")
    assert [each.tobytes() for each in one] == [each.tobytes() for each in two]
    assert any(np.abs(ours - theirs).max() > 0 for ours, theirs in zip(one, plain, strict=True))
    assert version.manifest["curriculum"] == {"by": "loss", "quarters_from": [1, 2, 3, 3]}
    losses = spark.read.parquet(str(tmp_path / "run of one" / "curriculum" / "losses")).collect()
    own = {row.content_hash for row in prepared.images(spark, schema.TRAIN).collect()}
    assert {row.content_hash for row in losses} == own and len(losses) == len(own)
    by_species: dict[str, list[float]] = collections.defaultdict(list)
    species = {row.content_hash: row.species for row in prepared.images(spark, schema.TRAIN).collect()}
    for row in losses:
        by_species[species[row.content_hash]].append(row.difficulty)
    quarters = np.concatenate(
        [np.searchsorted(np.percentile(each, [25, 50, 75]), each) for each in by_species.values()]
    )
    shown = version.manifest["training"]["rows_of_quarter"]
    assert shown[2:] == [np.bincount(quarters, minlength=4).tolist()] * 2
    assert shown[0] == [len(losses), 0, 0, 0] and sum(shown[1]) == len(losses)
    assert [count > 0 for count in shown[1]] == [True, True, False, False]
    assert len({row.difficulty for row in losses}) > 3 and min(row.difficulty for row in losses) > 0
