import json
import math

import numpy as np
import pytest

from seedlings_spark.errors import SeedlingsError
from seedlings_spark.reports import drift
from seedlings_spark.reports.drift import Profile

NAMES = ["species", "confidence", "brightness", "contrast", "sharpness", "size"]


def histogram(name, values):
    return tuple(np.bincount(drift.bins(name, values), minlength=drift.NUM_BINS))


def brightness(**counts):
    """A profile of nothing but brightness: b17=3 is three images in bin 17."""
    filled = [0] * drift.NUM_BINS
    for place, count in counts.items():
        filled[int(place[1:])] = count
    return Profile(histograms={"brightness": tuple(filled)})


def drawn(generator, num_images, *, num_species=12, brighter=0.0):
    """The profile of some images of one distribution; confidence is nearly always nearly 1."""
    # Zipf's: from common to rare ones.
    shares = 1 / np.arange(1, num_species + 1)
    counts = generator.multinomial(num_images, shares / shares.sum())
    return Profile(
        {f"species {number}": int(count) for number, count in enumerate(counts)},
        {
            "brightness": histogram("brightness", generator.normal(0.4 + brighter, 0.08, num_images)),
            "contrast": histogram("contrast", generator.gamma(4, 0.03, num_images)),
            "confidence": histogram("confidence", 1 - generator.beta(0.2, 3, num_images)),
            # All in three bins.
            "size": histogram("size", generator.normal(16, 0.05, num_images)),
        },
    )


def of(drifts, name):
    return next(each for each in drifts if each.name == name)


# Statistics


def pictures(*shape, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_black_and_white_are_the_ends_of_brightness():
    pixels = np.stack([np.full((8, 6, 3), 0, np.uint8), np.full((8, 6, 3), 255, np.uint8)])
    found = drift.statistics(pixels, np.array([1024, 1]))
    assert list(found) == list(drift.STATISTICS) == ["brightness", "contrast", "sharpness", "size"]
    assert found["brightness"].tolist() == [0.0, 1.0]
    assert found["contrast"].tolist() == [0.0, 0.0]
    assert found["sharpness"].tolist() == [0.0, 0.0]
    assert found["size"].tolist() == [10.0, 0.0]
    assert all(values.dtype == np.float64 for values in found.values())


def test_a_chessboard_is_the_end_of_contrast_and_sharpness():
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = drift.statistics(np.stack([board] * 3, axis=-1)[None], np.array([1]))
    assert found["brightness"] == pytest.approx([0.5])
    assert found["contrast"] == pytest.approx([0.5])
    assert found["sharpness"] == pytest.approx([math.log2(1 + 1020**2)])


@pytest.mark.parametrize("shape", [(5, 64, 64), (3, 3, 3), (2, 7, 200), (1, 300, 301)])
def test_statistics_are_those_of_the_luma_in_floating_point(shape):
    pixels = pictures(*shape)
    luma = pixels.astype(np.float64) @ [77 / 256, 150 / 256, 29 / 256]
    laplacian = (
        4 * luma[:, 1:-1, 1:-1]
        - luma[:, :-2, 1:-1]
        - luma[:, 2:, 1:-1]
        - luma[:, 1:-1, :-2]
        - luma[:, 1:-1, 2:]
    )
    found = drift.statistics(pixels, np.full(shape[0], 5000))
    assert found["brightness"] == pytest.approx(luma.mean(axis=(1, 2)) / 255, abs=3e-4)
    assert found["contrast"] == pytest.approx(luma.std(axis=(1, 2)) / 255, abs=3e-4)
    assert found["sharpness"] == pytest.approx(np.log2(1 + (laplacian**2).mean(axis=(1, 2))), abs=0.01)
    assert found["size"] == pytest.approx(np.log2(np.full(shape[0], 5000)))


def test_green_is_brighter_than_red_and_red_than_blue():
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    for channel in range(3):
        pixels[channel, ..., channel] = 255
    found = drift.statistics(pixels, np.ones(3, np.int64))
    assert found["brightness"] == pytest.approx([0.299, 0.587, 0.114], abs=2e-3)


def test_an_images_statistics_do_not_depend_on_its_batch():
    pixels, lengths = pictures(37, 64, 64), np.arange(1, 38)
    together = drift.statistics(pixels, lengths)
    for number in (0, 7, 8, 36):
        alone = drift.statistics(pixels[number : number + 1], lengths[number : number + 1])
        assert {name: values[number] for name, values in together.items()} == {
            name: values[0] for name, values in alone.items()
        }


def test_pixels_that_are_a_view_are_not_changed_and_count_the_same():
    pixels = pictures(4, 20, 20)
    before = pixels.copy()
    view = drift.statistics(pixels[::2, ::-1, 1:9], np.ones(2, np.int64))
    copied = drift.statistics(pixels[::2, ::-1, 1:9].copy(), np.ones(2, np.int64))
    assert {name: values.tolist() for name, values in view.items()} == {
        name: values.tolist() for name, values in copied.items()
    }
    assert (pixels == before).all()


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 2, 9), (2, 9, 2), (0, 64, 64)])
def test_pictures_without_inner_pixels_and_no_pictures_have_statistics(shape):
    found = drift.statistics(pictures(*shape), np.zeros(shape[0], np.int64))
    assert all(values.shape == (shape[0],) and np.isfinite(values).all() for values in found.values())
    assert not found["sharpness"].any()


@pytest.mark.parametrize(
    "pixels, lengths",
    [
        (np.zeros((2, 8, 8, 3), np.float32), [1, 1]),
        (np.zeros((2, 8, 8, 4), np.uint8), [1, 1]),
        (np.zeros((8, 8, 3), np.uint8), [1]),
        (np.zeros((2, 0, 8, 3), np.uint8), [1, 1]),
        (np.zeros((2, 8, 8, 3), np.uint8), [1]),
    ],
)
def test_pixels_of_another_shape_or_kind_are_refused(pixels, lengths):
    with pytest.raises(ValueError, match="expected"):
        drift.statistics(pixels, np.array(lengths))


# Bins


@pytest.mark.parametrize(
    "name, values, places",
    [
        ("brightness", [0.0, 0.00390, 0.00391, 0.5, 0.999, 1.0], [0, 0, 1, 128, 255, 255]),
        ("confidence", [-1.0, 0.25, 1.0000001, math.inf, -math.inf, math.nan], [0, 64, 255, 255, 0, 0]),
        ("contrast", [0.0, 0.25, 0.5, 0.6], [0, 128, 255, 255]),
        ("sharpness", [0.0, 10.0, 20.0], [0, 128, 255]),
        ("size", [0.0, 6.0, 16.0, 26.0, 40.0], [0, 0, 128, 255, 255]),
    ],
)
def test_the_bins_of_format_1_never_change(name, values, places):
    assert drift.FORMAT == 1 and drift.NUM_BINS == 256
    assert drift.bins(name, values).tolist() == places
    assert drift.bins(name, np.array(values, dtype=np.float32)).dtype == np.int64


def test_bins_keep_the_shape_and_refuse_a_name_that_they_do_not_know():
    assert drift.bins("size", np.zeros((2, 3))).shape == (2, 3)
    assert drift.bins("size", []).shape == (0,)
    with pytest.raises(ValueError, match="'colour', expected one of brightness"):
        drift.bins("colour", [0.5])


# Profiles


def test_profiles_add_up_in_any_order_and_grouping():
    generator = np.random.default_rng(5)
    one, two, three = drawn(generator, 50), drawn(generator, 7, num_species=20), brightness(b9=4)
    assert (one + two) + three == one + (two + three) == three + two + one
    assert sum([one, two, three], Profile()) == one + two + three
    total = one + two + three
    assert sum(total.histograms["brightness"]) == 61
    assert sum(total.histograms["size"]) == 57
    assert sum(total.species.values()) == 57
    assert total.histograms["brightness"][9] >= 4


def test_adding_leaves_the_terms_alone():
    one, two = brightness(b1=1), brightness(b1=2)
    assert (one + two).histograms["brightness"][1] == 3
    assert (one, two) == (brightness(b1=1), brightness(b1=2))


def test_a_profile_survives_json():
    profile = drawn(np.random.default_rng(6), 90) + Profile(
        {"never predicted": 0, 'two\nlines "ö" \udcff': 10**15}, {"sharpness": (0,) * drift.NUM_BINS}
    )
    content = json.loads(json.dumps(profile.to_json(), allow_nan=False))
    assert Profile.from_json(content) == profile
    assert content["format"] == 1
    assert Profile.from_json(json.loads(json.dumps(Profile().to_json()))) == Profile()


def test_json_names_the_bins_that_are_not_empty():
    assert (brightness(b3=2, b255=1) + Profile({"Maize": 3})).to_json() == {
        "format": 1,
        "species": {"Maize": 3},
        "histograms": {"brightness": [[3, 2], [255, 1]]},
    }


@pytest.mark.parametrize("found", [2, 0, "1", None, 1.0, True])
def test_a_profile_of_another_format_is_refused(found):
    content = {**Profile().to_json(), "format": found}
    with pytest.raises(SeedlingsError, match=r"format .* Expected format 1") as caught:
        Profile.from_json(content)
    assert repr(found) in caught.value.found


@pytest.mark.parametrize("content", [None, [], "format", {}])
def test_what_is_no_profile_is_refused(content):
    with pytest.raises(SeedlingsError, match="format None"):
        Profile.from_json(content)


@pytest.mark.parametrize(
    "damage",
    [
        {"species": None},
        {"species": [["Maize", 1]]},
        {"species": {"Maize": -1}},
        {"species": {"Maize": 1.5}},
        {"species": {"Maize": True}},
        {"histograms": {"colour": []}},
        {"histograms": {"size": [[256, 1]]}},
        {"histograms": {"size": [[-1, 1]]}},
        {"histograms": {"size": [[1, 1], [1, 1]]}},
        {"histograms": {"size": [[1, -1]]}},
        {"histograms": {"size": [[1]]}},
        {"histograms": {"size": 7}},
    ],
)
def test_a_damaged_profile_is_refused(damage):
    with pytest.raises(SeedlingsError, match="damaged profile"):
        Profile.from_json({**Profile().to_json(), **damage})
    missing = Profile().to_json()
    del missing[next(iter(damage))]
    with pytest.raises(SeedlingsError, match="damaged profile"):
        Profile.from_json(missing)


def test_a_profile_of_impossible_counts_cannot_be_made():
    with pytest.raises(ValueError, match="count of -1 in species"):
        Profile({"Maize": -1})
    with pytest.raises(ValueError, match="size with 3 bins, expected 256"):
        Profile({}, {"size": (1, 2, 3)})
    with pytest.raises(ValueError, match="'colour'"):
        Profile({}, {"colour": (0,) * drift.NUM_BINS})
    with pytest.raises(TypeError):
        Profile({"Maize": 1.5})


# Comparison


def test_the_index_of_species_is_the_one_computed_by_hand():
    reference, current = Profile({"Maize": 500, "Charlock": 500}), Profile({"Maize": 300, "Charlock": 100})
    found = drift.compare(reference, current)[0]
    # (0.5 - 0.75) ln(0.5 / 0.75) + (0.5 - 0.25) ln(0.5 / 0.25) = 0.25 ln 3
    assert found.psi == pytest.approx(0.27465, abs=1e-5)
    # 10.828 is the quantile of chi-square with one degree of freedom in every table; 1/1000 + 1/400.
    assert found.noise == pytest.approx(10.828 * 0.0035, rel=0.04)
    assert found.verdict == "shifted"
    assert found.largest == "Charlock 50.0% -> 25.0%"


def test_the_index_of_a_statistic_is_the_one_computed_by_hand():
    # Ten bins of a tenth each; half of the last one's images have moved to the first.
    reference = brightness(**{f"b{place}": 100 for place in range(20, 220, 20)})
    current = brightness(**{f"b{place}": 100 for place in range(20, 200, 20)}, b7=50, b200=50)
    found = of(drift.compare(reference, current), "brightness")
    # 0.05 ln 1.5 + 0.05 ln 2 = 0.05 ln 3
    assert found.psi == pytest.approx(0.05493, abs=1e-5)
    # 27.877 for nine degrees of freedom; 2 / 1000.
    assert found.noise == pytest.approx(27.877 * 0.002, rel=0.01)
    assert (found.verdict, found.largest) == ("stable", "lower")


@pytest.mark.parametrize(
    "degrees, quantile",
    [(1, 10.828), (2, 13.816), (3, 16.266), (9, 27.877), (11, 31.264), (30, 59.703), (100, 149.449)],
)
def test_the_noise_is_that_of_the_tables_of_chi_square(degrees, quantile):
    species = {f"species {number}": 1000 for number in range(degrees + 1)}
    found = drift.compare(Profile(species), Profile(species))[0]
    ours = found.noise / (2 / (1000 * (degrees + 1)))
    assert quantile * 0.9999 <= ours <= quantile * 1.031


def test_a_profile_does_not_differ_from_itself():
    profile = drawn(np.random.default_rng(8), 400) + Profile({}, {"sharpness": (1,) * drift.NUM_BINS})
    found = drift.compare(profile, profile)
    assert [each.name for each in found] == NAMES
    assert [each.psi for each in found] == [0.0] * 6
    assert [each.largest for each in found] == [""] * 6
    assert drift.verdict(found) == "stable" and drift.worst(found) == 0.0


@pytest.mark.parametrize(
    "num_reference, num_current",
    [(3000, 1), (3000, 7), (3000, 40), (3000, 300), (3000, 3000), (60, 60), (40, 2000), (5, 5), (300, 150)],
)
def test_samples_of_one_distribution_are_stable(num_reference, num_current):
    generator = np.random.default_rng([num_reference, num_current])
    verdicts, above = [], []
    for _ in range(100):
        reference, current = drawn(generator, num_reference), drawn(generator, num_current)
        found = [each for each in drift.compare(reference, current) if each.verdict != "unknown"]
        assert len(found) == 5
        verdicts += [each.verdict for each in found]
        above += [each.psi > each.noise for each in found]
    assert verdicts.count("stable") >= 0.99 * len(verdicts)
    assert sum(above) <= 0.01 * len(above)


def test_many_rare_species_are_not_a_drift():
    generator = np.random.default_rng(9)
    verdicts = []
    for num_current in (30, 100, 1000, 5000) * 75:
        found = drift.compare(
            Profile(drawn(generator, 5000, num_species=300).species),
            Profile(drawn(generator, num_current, num_species=300).species),
        )
        verdicts.append(found[0].verdict)
    assert verdicts.count("stable") >= 0.99 * len(verdicts)


@pytest.mark.parametrize("brighter, direction", [(0.1, "higher"), (-0.1, "lower")])
@pytest.mark.parametrize("num_current", [60, 1000])
def test_a_shift_of_brightness_is_found_and_nothing_else(brighter, direction, num_current):
    generator = np.random.default_rng(10)
    found = drift.compare(drawn(generator, 3000), drawn(generator, num_current, brighter=brighter))
    assert of(found, "brightness").verdict == "shifted"
    assert of(found, "brightness").largest == direction
    assert {each.verdict for each in found if each.name in ("species", "confidence", "size")} == {"stable"}
    assert drift.verdict(found) == "shifted"
    assert drift.worst(found) == of(found, "brightness").psi > 0.25


def test_a_large_index_of_few_images_is_stable():
    found = drift.compare(Profile({"Maize": 500, "Charlock": 500}), Profile({"Maize": 17, "Charlock": 5}))[0]
    assert found.psi > 0.25 and found.psi <= found.noise
    assert found.verdict == "stable"
    assert drift.worst([found]) == 0.0


@pytest.mark.parametrize(
    "maize, expected",
    # (share - 0.5) ln(share / (1 - share)) is 0.0998, 0.1006, 0.2487 and 0.2510.
    [(6550, "stable"), (6560, "drifting"), (7390, "drifting"), (7400, "shifted")],
)
def test_the_limits_are_a_tenth_and_a_quarter(maize, expected):
    reference = Profile({"Maize": 5000, "Charlock": 5000})
    found = drift.compare(reference, Profile({"Maize": maize, "Charlock": 10000 - maize}))[0]
    assert found.verdict == expected


@pytest.mark.parametrize("current", [90, 99, 101, 110, 0, 255])
def test_a_value_that_was_always_the_same_and_is_another_now_is_found(current):
    found = of(drift.compare(brightness(b100=500), brightness(**{f"b{current}": 500})), "brightness")
    assert found.verdict == "shifted"
    assert found.largest == ("higher" if current > 100 else "lower")
    assert math.isfinite(found.psi)


def test_bins_that_are_empty_on_both_sides_count_for_nothing():
    found = of(drift.compare(brightness(b100=500), brightness(b100=40)), "brightness")
    assert (found.psi, found.noise, found.verdict) == (0.0, 0.0, "stable")


def test_nine_images_are_enough_for_a_shift_of_all_of_them():
    found = of(drift.compare(brightness(b20=500, b180=500), brightness(b200=9)), "brightness")
    # Two cells: (0.5 - 1/18) ln 9 + 0.5 ln 2
    assert found.psi == pytest.approx(0.97654 + 0.34657, abs=1e-4)
    assert (found.verdict, found.largest) == ("shifted", "higher")


def test_values_beyond_all_of_the_reference_are_found():
    generator = np.random.default_rng(11)
    reference = Profile({}, {"confidence": histogram("confidence", generator.uniform(0.9, 1, 2000))})
    current = Profile({}, {"confidence": histogram("confidence", generator.uniform(0.1, 0.3, 200))})
    found = of(drift.compare(reference, current), "confidence")
    assert (found.verdict, found.largest) == ("shifted", "lower")


def test_a_species_never_seen_in_training_is_found_and_named():
    reference = Profile({"Maize": 5000, "Charlock": 4000, "Cleavers": 1000})
    current = Profile({"Maize": 40, "Charlock": 20, "Cleavers": 10, "Thistle": 30})
    found = drift.compare(reference, current)[0]
    assert found.verdict == "shifted" and math.isfinite(found.psi)
    assert found.largest == "Thistle 0.0% -> 30.0%"
    back = drift.compare(current, reference)[0]
    assert back.largest == "Thistle 30.0% -> 0.0%" and back.psi == pytest.approx(found.psi)


def test_an_empty_cell_counts_as_half_an_image():
    found = drift.compare(Profile({"Maize": 100}), Profile({"Maize": 80, "Thistle": 20}))[0]
    # 0.2 ln(1 / 0.8) + (0.2 - 0.005) ln(0.2 / 0.005)
    assert found.psi == pytest.approx(0.044629 + 0.719329, abs=1e-5)


def test_one_image_of_a_new_species_is_no_drift():
    reference = Profile({"Maize": 500_000, "Charlock": 500_000})
    assert (
        drift.compare(reference, Profile({"Maize": 50, "Charlock": 49, "Thistle": 1}))[0].verdict == "stable"
    )


def test_rare_species_that_become_common_together_are_found():
    rare = {f"rare {number}": 1 for number in range(30)}
    found = drift.compare(Profile({"Maize": 9000, **rare}), Profile({"Maize": 40, **rare}))[0]
    assert (found.verdict, found.largest) == ("shifted", "30 rare species 0.3% -> 42.9%")


def test_a_species_that_was_counted_but_never_seen_changes_nothing():
    reference, current = Profile({"Maize": 50, "Charlock": 60}), Profile({"Maize": 90, "Charlock": 10})
    absent = Profile({"Thistle": 0})
    assert drift.compare(reference + absent, current)[0] == drift.compare(reference, current + absent)[0]
    assert drift.compare(reference + absent, current)[0] == drift.compare(reference, current)[0]


def test_the_order_of_tasks_and_names_changes_nothing():
    generator = np.random.default_rng(12)
    parts = [drawn(generator, number) for number in (100, 3, 50)]
    reference = drawn(generator, 1000)
    backwards = sum(parts[::-1], Profile())
    turned = Profile(dict(reversed(backwards.species.items())), dict(reversed(backwards.histograms.items())))
    expected = drift.compare(reference, sum(parts, Profile()))
    assert repr(drift.compare(reference, turned)) == repr(expected)


def test_what_is_empty_on_one_side_is_unknown_and_no_worry():
    full, empty = drawn(np.random.default_rng(13), 200), Profile({"Maize": 0}, {"size": (0,) * 256})
    for found in (drift.compare(full, empty), drift.compare(empty, full), drift.compare(empty, Profile())):
        assert [each.name for each in found] == NAMES
        assert {each.verdict for each in found} == {"unknown"}
        assert all(math.isnan(each.psi) and math.isnan(each.noise) for each in found)
        assert drift.verdict(found) == "unknown" and drift.worst(found) == 0.0
        written = json.dumps([each.to_dict() for each in found], allow_nan=False)
        assert json.loads(written)[0] == {
            "name": "species",
            "psi": None,
            "noise": None,
            "verdict": "unknown",
            "largest": "",
        }
    assert drift.verdict([]) == "unknown" and drift.worst([]) == 0.0


def test_the_worst_verdict_is_the_one_of_all():
    def one(verdict, psi, noise=0.01):
        return drift.Drift("size", psi, noise, verdict, "")

    nothing = one("unknown", math.nan, math.nan)
    stable, drifting, shifted = one("stable", 0.0), one("drifting", 0.2), one("shifted", 0.3)
    assert drift.verdict([nothing, stable]) == "stable"
    assert drift.verdict([stable, drifting, nothing]) == "drifting"
    assert drift.verdict([shifted, drifting, stable]) == "shifted"
    assert drift.worst([nothing, stable, drifting, shifted, one("stable", 0.9, 1.0)]) == 0.3


def test_the_table_has_a_line_each_for_a_person():
    text = drift.table(
        [
            drift.Drift("species", 0.27465, 0.0379, "shifted", "Charlock 50.0% -> 25.0%"),
            drift.Drift("brightness", 0.02, 0.05, "stable", "higher"),
            drift.Drift("size", math.nan, math.nan, "unknown", ""),
        ]
    )
    assert text.split("\n") == [
        "               PSI   noise  verdict   largest difference",
        "species      0.275   0.038  shifted   Charlock 50.0% -> 25.0%",
        "brightness   0.020   0.050  stable    higher",
        "size             -       -  unknown",
    ]


@pytest.mark.parametrize("species", ["x" * 300, "two\nlines\t\x1b[31m", "\udcff no UTF-8", "Ährenmaïs"])
def test_the_table_of_hostile_species_keeps_to_its_lines_and_width(species):
    text = drift.table(drift.compare(Profile({"Maize": 100}), Profile({species: 100})))
    assert len(text.split("\n")) == 7
    assert all(line.isprintable() and len(line) <= 110 for line in text.split("\n"))
    text.encode("utf-8")
    named = drift.table(drift.compare(Profile({species: 100}), Profile({species: 10, "Maize": 90})))
    assert "Maize 0.0% -> 90.0%" in named
