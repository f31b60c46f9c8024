"""A second version over the same pictures, in their shadow: where it says something else, and how often it does not.

What the first version says is not touched. `shadow/` in a run's folder has the pictures of which the two say different
things, as `schema.SHADOWED`; the manifest counts the others by what the first version says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema
from seedlings_spark.errors import OptionError
from seedlings_spark.models.decisions import Decisions
from seedlings_spark.models.store import ModelVersion
from seedlings_spark.scoring import tasks

# A folder of a run, and a key of its manifest.
FOLDER = "shadow"


@dataclass(frozen=True)
class Voice:
    """What makes a species of a version's probabilities.

    Args:
        classes: Its species.
        decisions: What it has promised.
    """

    classes: Sequence[str]
    decisions: Decisions

    def heard(self, rows: DataFrame) -> DataFrame:
        """Rows with its probabilities, and its species and confidence besides."""
        named = tasks.with_species(rows, self.classes)
        decided = tasks.decided(self.decisions, self.classes)
        species = decided.get(schema.PREDICTED_SPECIES, F.col(schema.PREDICTED_SPECIES))
        confidence = F.array_max(schema.PROBABILITIES)
        return named.withColumns({schema.PREDICTED_SPECIES: species, schema.CONFIDENCE: confidence})


def check(version: ModelVersion, shadow: ModelVersion) -> None:
    """Refuse a shadow that is the version itself, or takes other pixels: each picture is decoded once.

    Raises:
        OptionError: It is so.
        StoreError: One of them names any number of species.
    """
    for each in (version, shadow):
        each.require_one_species("--shadow")
    if shadow.version == version.version:
        raise OptionError(
            f"--shadow {shadow.version}, which is the version that scores",
            "another one",
            "Choose another --shadow, or leave it out",
        )
    ours, theirs = ((each.image_size, each.aspect) for each in (version, shadow))
    if ours != theirs:
        words = ["{}x{} pixels, {}".format(*size, aspect) for size, aspect in (theirs, ours)]
        raise OptionError(
            f"--shadow {shadow.version}, which takes images of {words[0]}",
            f"{words[1]}, as {version.version} takes them: each picture is decoded once",
            "Score with that version by itself, into another --output",
        )


def differences(rows: DataFrame, voice: Voice, shadow: Voice, *, probabilities: bool) -> DataFrame:
    """The pictures of which two versions say different things, as `schema.SHADOWED`.

    Args:
        rows: As `tasks.SCORED`.
        voice: The first version's.
        shadow: The second one's.
        probabilities: Whether to keep those.
    """
    heard = voice.heard(rows.where(F.col(schema.REASON).isNull()))
    own = (schema.PREDICTED_SPECIES, schema.CONFIDENCE, schema.PROBABILITIES)
    second = heard.select(
        schema.PATH,
        schema.CONTENT_HASH,
        F.struct(*own).alias("own"),
        F.col(schema.SHADOW_PROBABILITIES).alias(schema.PROBABILITIES),
    )
    theirs = (schema.SHADOW_SPECIES, schema.SHADOW_CONFIDENCE, schema.SHADOW_PROBABILITIES)
    both = shadow.heard(second).select(
        schema.PATH,
        schema.CONTENT_HASH,
        *[F.col("own").getField(name).alias(name) for name in own],
        *[F.col(name).alias(new) for name, new in zip(own, theirs, strict=True)],
    )
    differ = both.where(~F.col(schema.PREDICTED_SPECIES).eqNullSafe(F.col(schema.SHADOW_SPECIES)))
    left_out = () if probabilities else (schema.PROBABILITIES, schema.SHADOW_PROBABILITIES)
    return differ.select(*[name for name in schema.SHADOWED.names if name not in left_out])


def counts(
    differ: Mapping[str | None, int], images_of_species: Mapping[str, int], unknown: int
) -> dict[str, Any]:
    """What a manifest says of how often two versions agree.

    Args:
        differ: What the first version says -> pictures of which the second one says something else.
        images_of_species: Species -> pictures of which the first version says so.
        unknown: Pictures that it calls unknown.
    """
    compared = {**images_of_species, **({schema.UNKNOWN: unknown} if unknown else {})}
    different = {name or schema.UNKNOWN: count for name, count in differ.items()}
    of_species = {
        name: {"compared": count, "agree": count - different.get(name, 0)}
        for name, count in sorted(compared.items())
    }
    total = sum(compared.values())
    return {"compared": total, "agree": total - sum(different.values()), "of_species": of_species}


def in_words(manifest: Mapping[str, Any]) -> str:
    """One line of what a manifest says of it, the species first of which the least agrees."""
    compared, agree = manifest["compared"], manifest["agree"]
    if not compared:
        return f"{manifest['model_version']} has seen no picture"
    shares = {name: each["agree"] / each["compared"] for name, each in manifest["of_species"].items()}
    least = sorted((share, name) for name, share in shares.items() if share < 1)
    said = ", ".join(f"{share:.1%} of {name}" for share, name in least[:5]) + (
        " ..." if len(least) > 5 else ""
    )
    text = f"{manifest['model_version']} agrees on {agree / compared:.1%} of {compared:,} pictures"
    return f"{text} ({said})" if said else text
