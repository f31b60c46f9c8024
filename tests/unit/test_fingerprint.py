"""The promises of `fingerprint`: literal values, computed once with sha256sum and a pocket calculator."""

import hashlib
import random
from collections import Counter

import pytest

from seedlings_spark import fingerprint

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256sum of nothing
HASHES = [hashlib.sha256(b"picture %d" % number).hexdigest() for number in range(20_000)]


def hash_at(place: float) -> str:
    """A hash whose first digits lie at a place between 0 and 1."""
    return f"{int(place * 16**13):013x}".ljust(64, "0")


def test_the_content_hash_is_the_sha256_of_the_bytes() -> None:
    assert fingerprint.content_hash(b"") == EMPTY
    assert (
        fingerprint.content_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_the_place_of_a_hash_is_its_first_digits_as_a_fraction() -> None:
    assert fingerprint.position("8" + "0" * 63) == 0.5
    assert fingerprint.position("0" * 64) == 0.0
    assert fingerprint.position("04" + "f" * 62) == pytest.approx(5 / 256, rel=1e-12)
    assert fingerprint.position(EMPTY) == pytest.approx(0xE3B0C442 / 2**32, abs=1e-9)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (0.0, "train"),
        (0.6999, "train"),
        (0.7001, "validation"),
        (0.8499, "validation"),
        (0.8501, "test"),
        (0.9999, "test"),
    ],
)
def test_the_split_changes_at_the_sums_of_the_shares(place: float, expected: str) -> None:
    assert fingerprint.split_of(hash_at(place), SHARES) == expected


def test_an_edge_belongs_to_the_split_that_begins_there() -> None:
    halves = {"train": 0.5, "validation": 0.25, "test": 0.25}
    assert fingerprint.split_of("7" + "f" * 12 + "0" * 51, halves) == "train"
    assert fingerprint.split_of("8" + "0" * 63, halves) == "validation"
    assert fingerprint.split_of("c" + "0" * 63, halves) == "test"


def test_the_last_split_takes_what_rounding_leaves() -> None:
    thirds = {"train": 0.1, "validation": 0.2, "test": 0.7}  # 0.1 + 0.2 is more than 0.3
    assert fingerprint.split_of("f" * 64, thirds) == "test"
    assert fingerprint.split_of("f" * 64, {"train": 1.0}) == "train"


def test_a_split_with_no_share_gets_no_image() -> None:
    shares = {"train": 0.0, "validation": 1.0, "test": 0.0}
    assert {fingerprint.split_of(hash_, shares) for hash_ in HASHES} == {"validation"}


def test_the_splits_get_their_shares_of_many_images() -> None:
    counts = Counter(fingerprint.split_of(hash_, SHARES) for hash_ in HASHES)
    # Five standard deviations of a binomial distribution.
    assert abs(counts["train"] - 14_000) < 5 * (20_000 * 0.7 * 0.3) ** 0.5
    assert abs(counts["validation"] - 3_000) < 5 * (20_000 * 0.15 * 0.85) ** 0.5
    assert sum(counts.values()) == 20_000


def test_the_split_depends_on_the_first_fifteen_digits_alone() -> None:
    randomness = random.Random(1)
    for hash_ in HASHES[:500]:
        other = hash_[:15] + "".join(randomness.choice("0123456789abcdef") for _ in range(49))
        assert fingerprint.split_of(hash_, SHARES) == fingerprint.split_of(other, SHARES)


def test_the_shard_is_the_remainder_of_the_last_digits() -> None:
    assert fingerprint.shard_of("f" * 49 + "0" * 14 + "7", 4) == 3
    assert fingerprint.shard_of("0" * 49 + "000000000000010", 5) == 1  # 16 % 5
    assert fingerprint.shard_of(EMPTY, 1) == 0
    assert fingerprint.shard_of(EMPTY, 7) == 4  # echo $((0x495991b7852b855 % 7))


def test_every_shard_of_every_split_gets_its_part() -> None:
    counts = Counter(
        (fingerprint.split_of(hash_, SHARES), fingerprint.shard_of(hash_, 4)) for hash_ in HASHES
    )
    assert len(counts) == 12
    assert min(counts[("train", shard)] for shard in range(4)) > 3_200  # 3,500 expected
    assert min(counts[("test", shard)] for shard in range(4)) > 600  # 750 expected


def test_the_smallest_sample_keys_are_of_every_split() -> None:
    sampled = sorted(HASHES, key=fingerprint.sample_key)[:2_000]
    counts = Counter(fingerprint.split_of(hash_, SHARES) for hash_ in sampled)
    assert abs(counts["train"] - 1_400) < 110
    assert abs(counts["test"] - 300) < 80


def test_the_sample_key_is_a_hash_of_a_name_and_the_hash() -> None:
    # printf 'sample e3b0c442...' | sha256sum
    expected = "9e9cfb59da1366ce52f08e8cb1bbc09e633b54a64ec54f0f0d13b766f469eccf"
    assert fingerprint.sample_key(EMPTY) == expected


def test_the_corpus_fingerprint_of_nothing_and_of_one_image_are_these() -> None:
    assert fingerprint.corpus_fingerprint([]) == hashlib.sha256(b"0 0 0 0 0 0 0 0 0").hexdigest()
    digest = hashlib.sha256(f"{EMPTY} Maize".encode()).digest()
    words = [int.from_bytes(digest[at : at + 4], "big") for at in range(0, 32, 4)]
    text = " ".join(map(str, [1, *words]))
    assert fingerprint.corpus_fingerprint([(EMPTY, "Maize")]) == hashlib.sha256(text.encode()).hexdigest()


def test_the_corpus_fingerprint_never_changes_between_versions() -> None:
    # From sha256sum and the shell's arithmetic. Models name the corpus that they were trained on by it.
    assert (
        fingerprint.corpus_fingerprint([(EMPTY, "Maize"), ("0" * 64, "Fat Hen"), ("0" * 64, "Fat Hen")])
        == "d310cc916f0888686abdc489fd3b97be8e3f2e886343187de222bd58e3210006"
    )


def test_the_corpus_fingerprint_does_not_see_the_order() -> None:
    images = [(hash_, f"species {number % 3}") for number, hash_ in enumerate(HASHES[:300])]
    shuffled = images.copy()
    random.Random(2).shuffle(shuffled)
    assert shuffled != images
    assert fingerprint.corpus_fingerprint(shuffled) == fingerprint.corpus_fingerprint(iter(images))


def test_the_corpus_fingerprint_sees_content_labels_and_copies() -> None:
    images = [(hash_, "Maize") for hash_ in HASHES[:10]]
    variants = [
        images,
        [(HASHES[11], "Maize"), *images[1:]],  # another byte
        [(HASHES[0], "Charlock"), *images[1:]],  # another label
        [*images, images[0]],  # a copy
        [*images, images[0], images[0]],  # two copies
        images[1:],  # one fewer
        [*images[2:], (HASHES[0], "maize"), (HASHES[1], "Maize")],  # upper and lower case
        [(HASHES[0], "Ma\N{LATIN SMALL LETTER I WITH DIAERESIS}ze"), *images[1:]],
    ]
    assert len({fingerprint.corpus_fingerprint(variant) for variant in variants}) == len(variants)


def test_labels_that_change_places_are_another_corpus() -> None:
    one = [(HASHES[0], "Maize"), (HASHES[1], "Charlock")]
    other = [(HASHES[0], "Charlock"), (HASHES[1], "Maize")]
    assert fingerprint.corpus_fingerprint(one) != fingerprint.corpus_fingerprint(other)


def test_a_fingerprint_needs_all_eight_sums() -> None:
    with pytest.raises(ValueError, match="7 word sums, expected 8"):
        fingerprint.combine(1, [0] * 7)
