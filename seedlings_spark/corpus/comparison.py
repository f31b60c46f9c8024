"""What tells two corpora apart: pictures by their bytes, with the species and the splits that they have in each."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import display, schema
from seedlings_spark.corpus.manifest import EXAMPLES, Corpus

_ONE, _OTHER = "one", "other"
KINDS = ADDED, REMOVED, RELABELLED, MOVED = "added", "removed", "relabelled", "moved"
# Species, or splits, that are named of each kind.
_MOST = 12
# What a manifest says of how pictures were read.
_SETTINGS = ("image_size", "aspect", "split_policy", "split_shares", "groups", "split_time", "sample")


@dataclass(frozen=True)
class Difference:
    """What tells two corpora apart.

    Args:
        one: A corpus.
        other: Another one.
        settings: Setting of `prepare` -> its values in both, where they are not the same.
        changes: (kind, what it was in the first, what it is in the other) -> images. The kinds are "added" and
            "removed", of species; "relabelled", from one species to another; and "moved", from one split to another. An
            image that was relabelled and moved is counted as both.
        examples: Kind -> paths of some of these images, sorted.
    """

    one: Corpus
    other: Corpus
    settings: Mapping[str, tuple[Any, Any]]
    changes: Mapping[tuple[str, str, str], int]
    examples: Mapping[str, list[str]]

    def number(self, kind: str) -> int:
        """Images of one kind of change."""
        return sum(count for (each, _, _), count in self.changes.items() if each == kind)


def diff(spark: SparkSession, one: Corpus, other: Corpus) -> Difference:
    """Compare two corpora.

    Args:
        spark: The session.
        one: The first.
        other: The second, which may have grown from it.

    Raises:
        CorpusError: The tables of one are not as its manifest says.
    """
    for each in (one, other):
        each.require_one_species("corpus diff")
    changes: Counter[tuple[str, str, str]] = Counter()
    examples: dict[str, list[str]] = {}
    if one.manifest != other.manifest:
        table = changed(spark, one, other)
        counted = table.groupBy("kind", "before", "after").agg(
            F.sum("images"), F.sort_array(F.collect_list(schema.PATH)).alias("paths")
        )
        small = counted.withColumn("paths", F.slice("paths", 1, EXAMPLES))
        for kind, before, after, count, paths in small.orderBy("kind", "before", "after").collect():
            changes[str(kind), str(before), str(after)] = int(count)
            examples[str(kind)] = sorted([*examples.get(str(kind), []), *map(str, paths)])[:EXAMPLES]
    settings = {
        name: (one.manifest.get(name), other.manifest.get(name))
        for name in _SETTINGS
        if one.manifest.get(name) != other.manifest.get(name)
    }
    return Difference(one, other, settings, changes, examples)


def changed(spark: SparkSession, one: Corpus, other: Corpus) -> DataFrame:
    """The changes one by one.

    Returns:
        Columns `kind`, `before`, `after`, `content_hash`, `path` (in the other corpus; of what was removed in the
        first) and `images`, the copies of these bytes that the change is of.
    """
    sides = _contents(spark, one, _ONE).join(_contents(spark, other, _OTHER), schema.CONTENT_HASH, "full")
    species, splits, paths, images = (
        [F.col(f"{name}_{column}") for name in (_ONE, _OTHER)]
        for column in (schema.SPECIES, schema.SPLIT, schema.PATH, "images")
    )
    gained = F.coalesce(images[1], F.lit(0)) - F.coalesce(images[0], F.lit(0))
    nothing, in_both = F.lit(""), F.least(*images)

    def change(kind: str, before: Column, after: Column, number: Column) -> Column:
        named = {"kind": F.lit(kind), "before": before, "after": after, "images": number}
        return F.struct(*[column.alias(name) for name, column in named.items()])

    found = F.array(
        F.when(gained > 0, change(ADDED, nothing, species[1], gained)),
        F.when(gained < 0, change(REMOVED, species[0], nothing, -gained)),
        F.when(species[0] != species[1], change(RELABELLED, species[0], species[1], in_both)),
        F.when(splits[0] != splits[1], change(MOVED, splits[0], splits[1], in_both)),
    )
    path = F.coalesce(*reversed(paths)).alias(schema.PATH)
    changes = sides.select(schema.CONTENT_HASH, path, F.explode(F.array_compact(found)).alias("change"))
    return changes.select(
        "change.kind", "change.before", "change.after", schema.CONTENT_HASH, schema.PATH, "change.images"
    )


def _contents(spark: SparkSession, corpus: Corpus, name: str) -> DataFrame:
    """Of each content its species, its splits (the same bytes can be kept in several) and the first of its paths."""
    splits = F.array_join(F.sort_array(F.collect_set(schema.SPLIT)), "+")
    found = {
        schema.SPECIES: F.min(schema.SPECIES),
        schema.SPLIT: splits,
        schema.PATH: F.min(schema.PATH),
        "images": F.count("*"),
    }
    columns = [column.alias(f"{name}_{column_name}") for column_name, column in found.items()]
    return corpus.images(spark).groupBy(schema.CONTENT_HASH).agg(*columns)


def summary(difference: Difference) -> list[tuple[str, object]]:
    """What tells them apart, for a person to read."""
    one, other = difference.one, difference.other
    rows: list[tuple[str, object]] = [
        ("first", display.Whole(one.path)),
        ("", f"{one.manifest['accepted']:,} images, fingerprint {one.fingerprint}"),
        ("other", display.Whole(other.path)),
        ("", f"{other.manifest['accepted']:,} images, fingerprint {other.fingerprint}"),
    ]
    if not difference.changes and not difference.settings:
        return [*rows, ("difference", "none: the same images, species, splits and settings")]
    rows += [(name, f"{before} -> {after}") for name, (before, after) in difference.settings.items()]
    for kind in KINDS:
        if not (number := difference.number(kind)):
            continue
        largest = sorted(
            (
                (count, before, after)
                for (each, before, after), count in difference.changes.items()
                if each == kind
            ),
            key=lambda change: (-change[0], *change[1:]),
        )
        parts = [
            f"{count:,} {' -> '.join(filter(None, (before, after)))}"
            for count, before, after in largest[:_MOST]
        ]
        more = f" and {len(largest) - _MOST:,} more" if len(largest) > _MOST else ""
        rows.append((kind, f"{number:,} ({', '.join(parts)}{more})"))
        rows += [("", display.Whole(path)) for path in difference.examples[kind]]
    return rows
