"""Mean and std of images by Spark's StandardScaler, left in a column's metadata; class numbers."""

import hashlib
import logging
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import StandardScaler, StringIndexerModel
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark.errors import CorpusError, OptionError, SeedlingsError
from seedlings_spark.estimator import features
from seedlings_spark.features import ImageStandardizer, ImageStandardizerModel

SIZE = (5, 4)
NUM_IMAGES = 60
LAYOUT = "content_hash string, species string, image binary, is_validation boolean"


def images_of(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Pixels whose mean and std differ by channel and place; one never changes."""
    draw = np.random.default_rng(seed)
    spread = draw.integers(1, 60, (*size, 3))
    pixels = (
        draw.normal(draw.integers(0, 256, (*size, 3)), spread, (count, *size, 3))
        .clip(0, 255)
        .astype(np.uint8)
    )
    pixels[:, 0, 0] = (0, 128, 255)
    return pixels


PIXELS = images_of(NUM_IMAGES)
HELD_OUT = np.arange(NUM_IMAGES) % 4 == 0


def rows_of(pixels: np.ndarray, held_out: Any = None) -> list[tuple[Any, ...]]:
    flags = np.zeros(len(pixels), bool) if held_out is None else held_out
    return [
        (
            hashlib.sha256(image.tobytes()).hexdigest(),
            f"species {index % 3}",
            bytearray(image.tobytes()),
            bool(flag),
        )
        for index, (image, flag) in enumerate(zip(pixels, flags, strict=True))
    ]


@pytest.fixture(scope="module")
def table(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(rows_of(PIXELS, HELD_OUT), LAYOUT).repartition(3).cache()


def standardizer(**params: Any) -> ImageStandardizer:
    return ImageStandardizer(**{"imageSize": list(SIZE), **params})


def test_columns_are_found_by_their_exact_names_whatever_is_in_these(table: DataFrame) -> None:
    odd = table.drop("content_hash").withColumnsRenamed(
        {"image": "camera.image", "is_validation": "is `held` out"}
    )
    columns = {
        "inputCol": "camera.image",
        "outputCol": "a.scaled",
        "heldOutCol": "is `held` out",
        "maxImages": 50,
    }
    model = standardizer(**columns).fit(odd)
    expected = PIXELS[~HELD_OUT].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(model.getOrDefault("mean"), expected, rtol=1e-12)
    found = features.standardization(model.transform(odd), "a.scaled")
    assert found is not None and found[0].tolist() == model.getOrDefault("mean")


def fitted(table: DataFrame, **params: Any) -> tuple[np.ndarray, np.ndarray]:
    model = standardizer(**params).fit(table)
    return np.array(model.getOrDefault("mean")), np.array(model.getOrDefault("std"))


# --- Bad input


def test_an_empty_table_is_refused(table: DataFrame) -> None:
    for empty in (table.limit(0), table.where("species = 'none'")):
        with pytest.raises(CorpusError, match="no image") as caught:
            standardizer().fit(empty)
        assert caught.value.remedy
    with pytest.raises(CorpusError, match="no image"):
        standardizer(maxImages=5).fit(table.limit(0))


def test_a_table_with_held_out_images_only_is_refused(table: DataFrame) -> None:
    with pytest.raises(CorpusError, match="no image"):
        standardizer(heldOutCol="is_validation").fit(table.where("is_validation"))


@pytest.mark.parametrize(
    ("column", "found"),
    [("absent", "no column 'absent'"), ("species", "a column 'species' of type string")],
)
def test_a_wrong_column_is_refused_by_name(table: DataFrame, column: str, found: str) -> None:
    with pytest.raises(CorpusError, match=found):
        standardizer(inputCol=column).fit(table)
    model = standardizer().fit(table.limit(1))
    with pytest.raises(CorpusError, match=found):
        model.transform(table, {model.inputCol: column})


@pytest.mark.parametrize("size", [[4, 4], [5, 5], [10, 4]])
def test_images_of_another_size_are_refused_with_both_sizes(table: DataFrame, size: list[int]) -> None:
    with pytest.raises(CorpusError, match=r"60 of 60 images .* \(60 to 60\)") as caught:
        standardizer(imageSize=size).fit(table)
    assert f"{size[0] * size[1] * 3:,} bytes each" in caught.value.expected


def test_one_damaged_image_among_many_is_counted(spark: SparkSession, table: DataFrame) -> None:
    short = spark.createDataFrame([("0", "species 0", bytearray(b"\0" * 59), False)], LAYOUT)
    long = spark.createDataFrame([("1", "species 0", bytearray(b"\0" * 61), False)], LAYOUT)
    with pytest.raises(CorpusError, match=r"2 of 62 images with another number of bytes \(59 to 61\)"):
        standardizer().fit(table.union(short).union(long))
    absent = spark.createDataFrame([("2", "species 0", None, False)], LAYOUT)
    with pytest.raises(CorpusError, match=r"1 of 61 images with another number of bytes \(1 without any\)"):
        standardizer().fit(table.union(absent))


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"poolBy": "row"}, "poolBy 'row'"),
        ({"imageSize": None}, "imageSize=None"),
        ({"imageSize": [5]}, r"imageSize=\[5\]"),
        ({"imageSize": [0, 4]}, r"imageSize=\[0, 4\]"),
        ({"maxImages": -1}, "maxImages=-1"),
    ],
)
def test_a_wrong_param_is_refused_by_name(table: DataFrame, params: dict[str, Any], found: str) -> None:
    with pytest.raises(OptionError, match=found) as caught:
        standardizer(**params).fit(table)
    assert isinstance(caught.value, SeedlingsError)


# --- Mean and std


def test_per_pixel_they_are_those_of_numpy(table: DataFrame) -> None:
    mean, std = fitted(table, poolBy="pixel")
    np.testing.assert_allclose(mean, PIXELS.mean(axis=0).ravel(), rtol=1e-12)
    np.testing.assert_allclose(std, PIXELS.std(axis=0, ddof=1).ravel(), rtol=1e-12)
    assert std[:3].tolist() == [0, 0, 0]  # the pixel that never changes, exactly


def test_per_pixel_they_are_those_of_sparks_scaler(spark: SparkSession, table: DataFrame) -> None:
    vectors = spark.createDataFrame(
        [(Vectors.dense(image.ravel().astype(float)),) for image in PIXELS], ["pixels"]
    )
    scaler = StandardScaler(inputCol="pixels", outputCol="scaled", withMean=True, withStd=True).fit(vectors)
    mean, std = fitted(table, poolBy="pixel")
    np.testing.assert_allclose(mean, scaler.mean.toArray(), rtol=1e-12)
    np.testing.assert_allclose(std, scaler.std.toArray(), rtol=1e-12)


def test_per_channel_they_are_pooled_over_images_and_pixels(table: DataFrame) -> None:
    mean, std = fitted(table)
    np.testing.assert_allclose(mean, PIXELS.mean(axis=(0, 1, 2)), rtol=1e-12)
    within = PIXELS.var(axis=0, ddof=1).mean(axis=(0, 1))
    between = PIXELS.mean(axis=0).var(axis=(0, 1))
    np.testing.assert_allclose(std, np.sqrt(within + between), rtol=1e-12)
    # The variance over all pixels together differs only by n / (n - 1) in the part within a pixel.
    np.testing.assert_allclose(std, PIXELS.std(axis=(0, 1, 2)), rtol=1 / NUM_IMAGES)


def test_pooling_equal_parts_gives_the_moments_of_all_values() -> None:
    values = np.random.default_rng(0).normal(50, 20, (40, 6, 7, 3))
    mean, std = features.pool_by_channel(values.mean(axis=0), values.std(axis=0))
    np.testing.assert_allclose(mean, values.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(std, values.std(axis=(0, 1, 2)))


@pytest.mark.parametrize("pool_by", features.POOLINGS)
def test_one_image_has_its_own_mean_and_no_std_in_a_pixel(spark: SparkSession, pool_by: str) -> None:
    one = spark.createDataFrame(rows_of(PIXELS[:1]), LAYOUT)
    mean, std = fitted(one, poolBy=pool_by)
    image = PIXELS[0].astype(float)
    if pool_by == "pixel":
        assert mean.tolist() == image.ravel().tolist()
        assert std.tolist() == [0.0] * 60
    else:
        np.testing.assert_allclose(mean, image.mean(axis=(0, 1)))
        np.testing.assert_allclose(std, image.std(axis=(0, 1)))


def test_held_out_images_are_not_looked_at(spark: SparkSession, table: DataFrame) -> None:
    mean, std = fitted(table, poolBy="pixel", heldOutCol="is_validation")
    np.testing.assert_allclose(mean, PIXELS[~HELD_OUT].mean(axis=0).ravel(), rtol=1e-12)
    np.testing.assert_allclose(std, PIXELS[~HELD_OUT].std(axis=0, ddof=1).ravel(), rtol=1e-12)
    # Not even at their sizes.
    strange = spark.createDataFrame([("f" * 64, "species 0", bytearray(b"x"), True)], LAYOUT)
    again = fitted(table.union(strange), poolBy="pixel", heldOutCol="is_validation")
    assert np.array_equal(again, (mean, std))


def first_by_hash(count: int) -> np.ndarray:
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in PIXELS]
    return PIXELS[np.argsort(hashes)[:count]]


@pytest.mark.parametrize("count", [1, 7, 60, 1000])
def test_at_most_max_images_are_looked_at_the_first_by_hash(table: DataFrame, count: int) -> None:
    chosen = first_by_hash(count)
    for source in (table, table.drop("content_hash")):  # without the column the pixels are hashed
        mean, std = fitted(source, poolBy="pixel", maxImages=count)
        np.testing.assert_allclose(mean, chosen.mean(axis=0).ravel(), rtol=1e-12)
        expected = chosen.std(axis=0, ddof=1).ravel() if len(chosen) > 1 else np.zeros(60)
        np.testing.assert_allclose(std, expected, rtol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_copies_of_one_image_count_as_many(spark: SparkSession, count: int) -> None:
    chosen = first_by_hash(3)
    copies = np.concatenate([chosen[:1], np.repeat(chosen[1:2], 3, axis=0), chosen[2:]])
    mean, _ = fitted(spark.createDataFrame(rows_of(copies[::-1]), LAYOUT), poolBy="pixel", maxImages=count)
    np.testing.assert_allclose(mean, copies[:count].mean(axis=0).ravel(), rtol=1e-12)


@pytest.mark.parametrize("params", [{}, {"maxImages": 23}, {"heldOutCol": "is_validation"}], ids=str)
def test_they_are_the_same_to_the_last_bit_in_any_partitions_and_order(
    spark: SparkSession, params: dict[str, Any]
) -> None:
    # As many images as Spark's online means need to round differently.
    rows = rows_of(images_of(200), np.arange(200) % 5 == 0)
    found = set()
    for seed, partitions in enumerate((1, 2, 7)):
        order = np.random.default_rng(seed).permutation(len(rows))
        shuffled = spark.createDataFrame([rows[place] for place in order], LAYOUT).repartition(partitions)
        mean, std = fitted(shuffled, poolBy="pixel", **params)
        found.add(mean.tobytes() + std.tobytes())
    assert len(found) == 1


def test_rounding_to_whole_sums_undoes_the_rounding_of_the_summation() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5000, 30)).astype(np.uint8)
    mean, std = features.exact(pixels.mean(axis=0), pixels.std(axis=0, ddof=1), len(pixels))
    noise = 1 + np.random.default_rng(2).uniform(-1e-12, 1e-12, (2, 30))
    again = features.exact(mean * noise[0], std * noise[1], len(pixels))
    assert np.array_equal(again, (mean, std))
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(std, pixels.std(axis=0, ddof=1), rtol=1e-12)


def test_large_images_in_many_rows_take_little_memory_at_a_time(spark: SparkSession) -> None:
    # 300 images of 600 kB as floats: in one Arrow batch of Spark's default 10,000 rows 180 MB.
    size = (224, 224)
    one = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rows = spark.range(0, 300, 1, 1).select(F.lit(bytearray(one.tobytes())).alias("image"))
    seen: list[int] = []
    real = features.session.arrow_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            features.session, "arrow_batches", lambda spark, size: seen.append(size) or real(spark, size)
        )
        model = ImageStandardizer(imageSize=list(size)).fit(rows.limit(20))
    assert seen == [4 * one.size]
    np.testing.assert_allclose(model.getOrDefault("mean"), one.mean(axis=(0, 1)), rtol=1e-12)


def test_fitting_says_of_how_many_images(table: DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="seedlings_spark.estimator.features"):
        standardizer(heldOutCol="is_validation").fit(table)
    assert [record.getMessage() for record in caplog.records] == [
        "mean and std of 45 images, one for each channel"
    ]


# --- The model


@pytest.mark.parametrize("pool_by", features.POOLINGS)
def test_the_column_keeps_its_bytes_and_carries_mean_and_std(table: DataFrame, pool_by: str) -> None:
    model = standardizer(poolBy=pool_by).fit(table)
    transformed = model.transform(table)
    assert transformed.columns == [*table.columns, "standardized_image"]
    assert transformed.where("image != standardized_image").count() == 0
    found = features.standardization(transformed, "standardized_image")
    assert found is not None
    shape = (3,) if pool_by == "channel" else (*SIZE, 3)
    for array, name in zip(found, ("mean", "std"), strict=True):
        assert array.shape == shape
        assert array.ravel().tolist() == model.getOrDefault(name)
    assert features.standardization(transformed, "image") is None


def test_metadata_survives_what_a_pipeline_does_to_a_column(table: DataFrame) -> None:
    model = standardizer().fit(table)
    transformed = model.transform(table).where("not is_validation").repartition(2)
    transformed = transformed.withColumn("more", F.lit(1)).select("standardized_image").cache()
    found = features.standardization(transformed, "standardized_image")
    assert found is not None
    assert found[0].tolist() == model.getOrDefault("mean")


def test_estimator_and_model_are_saved_and_loaded(table: DataFrame, tmp_path: Any) -> None:
    folder = f"file://{tmp_path}/a folder's"
    stage = standardizer(poolBy="pixel", maxImages=40, heldOutCol="is_validation", outputCol="scaled")
    pipeline = Pipeline(stages=[features.species_indexer(), stage])
    pipeline.write().save(f"{folder}/estimator")
    loaded = Pipeline.load(f"{folder}/estimator").getStages()[1]
    assert isinstance(loaded, ImageStandardizer)
    assert {param.name: value for param, value in loaded.extractParamMap().items()} == {
        param.name: value for param, value in stage.extractParamMap().items()
    }
    fitted_pipeline = pipeline.fit(table)
    fitted_pipeline.write().save(f"{folder}/model")
    model, again = fitted_pipeline.stages[1], PipelineModel.load(f"{folder}/model").stages[1]
    assert isinstance(again, ImageStandardizerModel)
    assert again.uid == model.uid == stage.uid
    for name in ("mean", "std", "imageSize", "poolBy", "inputCol", "outputCol"):
        assert again.getOrDefault(name) == model.getOrDefault(name)
    first, second = (each.transform(table).schema["scaled"].metadata for each in (model, again))
    assert first == second


def test_a_copy_with_other_params_leaves_the_original_alone(table: DataFrame) -> None:
    stage = standardizer()
    model = stage.fit(table, {stage.poolBy: "pixel"})
    assert len(model.getOrDefault("mean")) == 60
    assert stage.getOrDefault("poolBy") == "channel"


# --- Class numbers


def test_species_are_numbered_in_the_order_of_their_names_whatever_their_counts(spark: SparkSession) -> None:
    names = ["b", "a", "c", "c", "c", "B", "\N{LATIN SMALL LETTER E WITH ACUTE}", "it's", "c"]
    rows = spark.createDataFrame([(name,) for name in names], "species string")
    model = features.species_indexer().fit(rows)
    assert isinstance(model, StringIndexerModel)
    assert model.labels == sorted(set(names))
    transformed = model.transform(rows)
    assert transformed.schema["label"].metadata["ml_attr"]["vals"] == model.labels
    assert [model.labels[int(row.label)] == row.species for row in transformed.collect()] == [True] * len(
        names
    )


def test_a_species_that_was_not_trained_on_fails(spark: SparkSession) -> None:
    model = features.species_indexer().fit(spark.createDataFrame([("a",), ("b",)], "species string"))
    with pytest.raises(Exception, match="Unseen label: z"):
        model.transform(spark.createDataFrame([("z",)], "species string")).collect()
