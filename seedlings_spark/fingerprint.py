"""Content hash, split of a hash, shard of a hash, corpus fingerprint: pure functions of bytes.

Split and shard read different digits of the hash, and a sample is chosen by a hash of the hash, so that the
images of one split spread over all shards, and those of a sample over all splits. Nothing here looks at a name,
a folder, an order or a clock.
"""

import hashlib
from collections.abc import Iterable, Mapping

# How many hexadecimal digits of the hash are read as one number: 60 bits, exact in a signed 64-bit integer.
DIGITS = 15
_RANGE = 16**DIGITS
# The fingerprint's sums run over words of 32 bits, so that a 64-bit sum holds 2**31 images.
FINGERPRINT_WORDS = 8
SAMPLE_PREFIX = "sample "


def content_hash(content: bytes) -> str:
    """The SHA-256 of a file's bytes, as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def position(content_hash: str) -> float:
    """Where a hash lies between 0 and 1, by its first digits: its place in the split."""
    return float(int(content_hash[:DIGITS], 16) / _RANGE)


def split_of(content_hash: str, shares: Mapping[str, float]) -> str:
    """The split of an image: a function of its bytes alone.

    Args:
        content_hash: Hash of the image's file.
        shares: Split name -> share, in order; the shares add up to 1.

    Returns:
        The name of the split. The last one takes what rounding leaves.
    """
    place, edge, name = position(content_hash), 0.0, ""
    for name, share in shares.items():
        edge += share
        if place < edge:
            return name
    return name


def shard_of(content_hash: str, num_shards: int) -> int:
    """The shard of an image, 0 to num_shards - 1, by the last digits of its hash."""
    return int(content_hash[-DIGITS:], 16) % num_shards


def sample_key(content_hash: str) -> str:
    """Where an image stands when a sample is chosen: those with the smallest keys are in it.

    Not the content hash itself: the smallest hashes are all of one split.
    """
    return hashlib.sha256(f"{SAMPLE_PREFIX}{content_hash}".encode()).hexdigest()


def labelled_digest(content_hash: str, species: str) -> str:
    """What one labelled image adds to the corpus fingerprint, as 64 hexadecimal digits."""
    return hashlib.sha256(f"{content_hash} {species}".encode()).hexdigest()


def combine(num_images: int, word_sums: Iterable[int]) -> str:
    """The corpus fingerprint from the sums of the digests' words.

    A sum does not depend on the order of its terms, so neither order, location nor partitioning is seen
    (a multiset hash by addition, Bellare and Micciancio 1997; it tells corpora apart, it does not resist
    somebody who constructs a collision).

    Args:
        num_images: How many labelled images were added.
        word_sums: For each of the 8 32-bit words of the digests, most significant first, the sum over all images.

    Returns:
        64 hexadecimal digits.
    """
    words = list(word_sums)
    if len(words) != FINGERPRINT_WORDS:
        raise ValueError(f"{len(words)} word sums, expected {FINGERPRINT_WORDS}")
    text = " ".join(str(number) for number in [num_images, *words])
    return hashlib.sha256(text.encode()).hexdigest()


def corpus_fingerprint(images: Iterable[tuple[str, str]]) -> str:
    """The fingerprint of (content_hash, species) pairs held in memory; `corpus` computes the same on Spark."""
    num_images, sums = 0, [0] * FINGERPRINT_WORDS
    for hash_, species in images:
        digest = labelled_digest(hash_, species)
        num_images += 1
        for word in range(FINGERPRINT_WORDS):
            sums[word] += int(digest[8 * word : 8 * word + 8], 16)
    return combine(num_images, sums)
