import hashlib
import math

import numpy as np
import pytest

from seedlings_spark import images
from seedlings_spark.corpus import synthetic

REAL_SPECIES = {
    "Black-grass",
    "Charlock",
    "Cleavers",
    "Common Chickweed",
    "Common wheat",
    "Fat Hen",
    "Loose Silky-bent",
    "Maize",
    "Scentless Mayweed",
    "Shepherds Purse",
    "Small-flowered Cranesbill",
    "Sugar beet",
}


def files_of(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"species": -1, "index": 0, "seed": 0},
        {"species": 12, "index": 0, "seed": 0},
        {"species": 0, "index": -1, "seed": 0},
        {"species": 0, "index": 0, "seed": -1},
        {"species": 0, "index": 0, "seed": 0, "size": 7},
    ],
)
def test_a_plant_that_cannot_be_drawn_is_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        synthetic.draw(**arguments)


def test_the_smallest_and_odd_sizes_are_drawn_too():
    for size in (8, 9, 33, 224):
        for species in range(len(synthetic.SPECIES)):
            assert synthetic.draw(species, 0, seed=1, size=size).shape == (size, size, 3)


def test_there_are_twelve_species_and_none_is_a_real_one():
    assert len(set(synthetic.SPECIES)) == 12
    assert not set(synthetic.SPECIES) & REAL_SPECIES


def test_a_picture_is_the_same_to_the_bit_on_every_machine():
    digest = hashlib.sha256(synthetic.draw(3, 7, seed=42).tobytes()).hexdigest()
    assert digest == "a2d6bd7eb50ed5562363b15711771a486f32fffa55346402f9ef6cbd6f120571"


def test_a_picture_depends_on_its_arguments_only():
    first = synthetic.draw(5, 2, seed=9)
    synthetic.draw(1, 1, seed=1)
    np.random.seed(0)
    assert np.array_equal(synthetic.draw(5, 2, seed=9), first)


def test_another_species_index_or_seed_is_another_picture():
    drawn = {
        synthetic.draw(species, index, seed=seed, size=24).tobytes()
        for species in range(12)
        for index in range(5)
        for seed in range(2)
    }
    assert len(drawn) == 12 * 5 * 2


def test_every_picture_shows_a_plant_on_soil():
    for species in range(12):
        for index in range(10):
            pixels = synthetic.draw(species, index, seed=0).astype(int)
            red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
            # Soil is redder than green. Noise of 5 levels turns few of its pixels.
            green_part = ((green > red + 8) | ((green > blue + 50) & (green > red - 10))).mean()
            assert 0.01 < green_part < 0.4, (synthetic.SPECIES[species], index)


def test_directions_are_those_of_the_circle():
    for turns in np.linspace(-1.5, 2.5, 97):
        cosine, sine = synthetic._unit_vector(float(turns))
        assert cosine == pytest.approx(math.cos(2 * math.pi * turns), abs=2e-9)
        assert sine == pytest.approx(math.sin(2 * math.pi * turns), abs=2e-9)


def test_pictures_of_a_species_are_more_alike_than_those_of_another():
    # Nearest neighbour by colours and by how much green lies at each distance from the middle.
    def features(pixels):
        values = pixels.astype(float)
        greenness = values[..., 1] - values[..., 0]
        y, x = np.mgrid[0:48, 0:48] - 23.5
        rings = [greenness[(np.hypot(x, y) >= r) & (np.hypot(x, y) < r + 4)].mean() for r in range(0, 24, 4)]
        return np.concatenate([values.mean((0, 1)), values.std((0, 1)), rings])

    rows = np.array(
        [features(synthetic.draw(species, i, seed=0, size=48)) for species in range(12) for i in range(15)]
    )
    labels = np.repeat(np.arange(12), 15)
    rows = (rows - rows.mean(0)) / rows.std(0)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    right = (labels[distances.argmin(1)] == labels).mean()
    # Far above chance, 1/12, and yet not so easy that a network had nothing to learn.
    assert 0.4 < right < 0.95


def test_a_corpus_has_a_folder_a_species_and_numbered_pictures(hostile_path):
    assert synthetic.write_corpus(hostile_path, images_per_species=3, size=16, seed=5) == 36
    files = files_of(hostile_path)
    assert set(files) == {f"{name}/{i:04d}.png" for name in synthetic.SPECIES for i in range(3)}
    name = synthetic.SPECIES[4]
    assert np.array_equal(
        images.decode(files[f"{name}/0002.png"], (16, 16)), synthetic.draw(4, 2, seed=5, size=16)
    )


def test_no_two_files_of_a_corpus_are_alike(tmp_path):
    synthetic.write_corpus(tmp_path, images_per_species=10, size=32)
    contents = list(files_of(tmp_path).values())
    assert len(set(contents)) == len(contents) == 120


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        synthetic.write_corpus(tmp_path / name, images_per_species=2, size=16, seed=seed)
    first, second, third = (files_of(tmp_path / name) for name in ("first", "second", "third"))
    assert first == second
    assert not set(first.values()) & set(third.values())


def test_writing_again_replaces_files_and_leaves_nothing_else(tmp_path):
    synthetic.write_corpus(tmp_path, images_per_species=2, size=16)
    before = files_of(tmp_path)
    damaged = tmp_path / synthetic.SPECIES[0] / "0000.png"
    damaged.write_bytes(b"damaged")
    synthetic.write_corpus(tmp_path, images_per_species=2, size=16)
    assert files_of(tmp_path) == before


def test_more_pictures_do_not_change_the_earlier_ones(tmp_path):
    synthetic.write_corpus(tmp_path / "few", images_per_species=1, size=16)
    synthetic.write_corpus(tmp_path / "more", images_per_species=2, size=16)
    assert files_of(tmp_path / "few").items() <= files_of(tmp_path / "more").items()
