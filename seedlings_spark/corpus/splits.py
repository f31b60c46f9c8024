"""Which image goes into which split, and which ones are a sample."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import fingerprint, schema
from seedlings_spark.choices import LEAK_POLICIES, NEAR_DUPLICATE_POLICIES, SPLIT_POLICIES
from seedlings_spark.errors import CorpusError, OptionError
from seedlings_spark.kinds import Kind

# Columns beside those of `schema.DECODED`, all of them text or null but the last, a number: what the source says of
# an image.
GIVEN, GROUP, TIME = "given_split", "given_group", "given_time"
# What stays on one side together: a group, or the same bytes.
UNIT = "unit"
# The split of a unit that has pictures of a parent.
SETTLED = "settled"
BY_TIME = "time"
# Of a manifest's groups: those that are one with others, and by whose name all of these go.
JOINED = "joined"
# Parts of numbers in their order, in each of which a stratified split has its share.
_TENTHS = 10


@dataclass(frozen=True)
class SplitRule:
    """Which image goes into which split.

    Args:
        shares: Split -> share, adding up to 1; not used where the splits are given.
        policy: "hash": an image's split depends on its bytes, or its group's name, alone. "stratified": exact shares in
            every species, or every tenth of the numbers, for which images that are added later may move others.
            "given": as the source says. "auto": given where the source says something, else hash.
        leaks: What becomes of the same bytes, or of pictures of one group, in two given splits: "error"; "drop", which
            rejects those that are not in the split that is measured on; or "keep".
        group_column: Column of a table whose equal values stay in one split; "" for none.
        group_from_path: Regular expression (of Java) whose first group, found in the path, is the same; "" for none.
        time_column: Column of a table by which the newest images are the test split, and those before them the
            validation split; "" for none.
        near_duplicates: What becomes of pictures that are nearly the same: "ignore"; "report", which looks for them;
            or "group", which keeps them in one split as well.
        joined: Groups of a parent that share bytes with others -> the one by whose name all of them are split.
        grows: Whether the images are added to those of a parent.

    Raises:
        OptionError: No such policy, other shares, or what does not go together.
    """

    shares: Mapping[str, float]
    policy: str = "auto"
    leaks: str = "error"
    group_column: str = ""
    group_from_path: str = ""
    time_column: str = ""
    near_duplicates: str = "ignore"
    joined: Mapping[str, str] = field(default_factory=dict)
    grows: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("split_policy", self.policy, (*SPLIT_POLICIES, BY_TIME)),
            ("leaks", self.leaks, LEAK_POLICIES),
            ("near_duplicates", self.near_duplicates, NEAR_DUPLICATE_POLICIES),
        ):
            if value not in choices:
                raise OptionError(f"{name} {value!r}", f"one of {', '.join(choices)}", "Choose one of them")
        values = self.shares.values()
        if not values or min(values) < 0 or abs(sum(values) - 1) > 1e-9:
            raise OptionError(f"shares {dict(self.shares)}", "shares that add up to 1", "Correct them")
        if self.group_column and self.group_from_path:
            raise OptionError(
                "--group-column with --group-from-path",
                "one of them",
                "Leave out one: a picture has one group",
            )
        if self.policy == BY_TIME and not self.time_column:
            raise OptionError("split_policy 'time' without a column", "a column of times", "Give time_column")
        if self.time_column and self.policy not in ("auto", BY_TIME):
            raise OptionError(
                f"--split-time with --split-policy {self.policy}",
                "one rule that deals the pictures",
                "Leave out one of them",
            )
        if (self.has_groups or self.near_duplicates == "group") and self.policy == "stratified":
            raise OptionError(
                f"{'groups' if self.has_groups else '--near-duplicates group'} with --split-policy stratified",
                "hash, time or given splits: exact shares of every species would tear groups apart",
                "Leave out --split-policy",
            )

    @classmethod
    def of_parent(
        cls, manifest: Mapping[str, Any], leaks: str = "error", near_duplicates: str = ""
    ) -> "SplitRule":
        """How images are split that are added to a corpus.

        Args:
            manifest: Manifest of the corpus. After exact shares new images are dealt by their bytes: none moves.
            leaks: As above.
            near_duplicates: As above, "" for the parent's; a new picture goes where the parent has one that is nearly
                the same.

        Raises:
            CorpusError: The corpus is split by time, in which new images have no place of their own; or its splits were
                given and it has groups.
            OptionError: Near duplicates would tear groups of the parent apart.
        """
        if manifest["split_policy"] == BY_TIME:
            raise CorpusError(
                "--parent with a corpus that is split by time",
                "splits that do not move when images are added",
                "Prepare all images anew with --split-time",
            )
        groups = manifest.get("groups", {})
        inherited = manifest.get("near_duplicates", {}).get("policy", "ignore")
        if groups and inherited == "group" and not near_duplicates:
            raise OptionError(
                "--parent with a corpus of groups that keeps near duplicates together, too",
                "one of them: the parent does not say which picture was in which group",
                "Add --near-duplicates report or ignore, or prepare all images anew",
            )
        near_duplicates = near_duplicates or inherited
        if groups and manifest["split_policy"] == "given" and leaks != "keep":
            raise CorpusError(
                "--parent with a corpus of groups whose splits were given",
                "groups of which it is known where they are: the parent does not say which picture was in which",
                "Prepare all images anew; or use --leaks keep if you know that no new picture is of one of its groups",
            )
        if groups and near_duplicates == "group":
            raise OptionError(
                "--near-duplicates group with --parent, a corpus with groups",
                "one of them: the parent does not say which picture was in which group",
                "Use --near-duplicates report, or prepare all images anew",
            )
        return cls(
            dict(manifest["split_shares"]),
            "given" if manifest["split_policy"] == "given" else "hash",
            leaks,
            group_column=groups.get("group_column", ""),
            group_from_path=groups.get("group_from_path", ""),
            near_duplicates=near_duplicates,
            joined=groups.get(JOINED, {}),
            grows=True,
        )

    @property
    def has_groups(self) -> bool:
        """Whether pictures of one group stay together."""
        return bool(self.group_column or self.group_from_path)

    def resolved(self, *, is_given: bool) -> "SplitRule":
        """The rule with a policy in place of "auto".

        Args:
            is_given: Whether the source says which picture is in which split.

        Raises:
            CorpusError: Given splits are wanted, and there are none.
        """
        if self.policy == "given" and not is_given:
            raise CorpusError(
                "--split-policy given with images that come without splits",
                "the folders train, validation and test above those of the species, or a table with a column split",
                "Leave out --split-policy",
            )
        if self.policy != "auto":
            return self
        return replace(self, policy=BY_TIME if self.time_column else "given" if is_given else "hash")

    def with_units(self, rows: DataFrame) -> tuple[DataFrame, Mapping[str, str]]:
        """Rows with the column `UNIT`: of the same bytes, or of a group with all that share bytes with it.

        And the groups that share bytes with others, with the one by whose name all of them go.
        """
        if not self.has_groups:
            return rows.withColumn(UNIT, F.col(schema.CONTENT_HASH)), {}
        accepted = rows.where(F.col(schema.REASON).isNull())
        pairs = accepted.select(GROUP, schema.CONTENT_HASH).distinct()
        of_content = pairs.groupBy(schema.CONTENT_HASH).agg(F.collect_set(GROUP).alias("groups"))
        shared = of_content.where(F.size("groups") > 1).select("groups").distinct().collect()
        if self.grows:
            self._refuse_joining([sorted(row["groups"]) for row in shared])
        unit_of = joined([*(row["groups"] for row in shared), *self.joined.items()])
        if not unit_of:
            return rows.withColumn(UNIT, F.col(GROUP)), {}
        units = rows.sparkSession.createDataFrame(list(unit_of.items()), f"{GROUP} string, joined string")
        with_joined = rows.join(F.broadcast(units), GROUP, "left")
        return with_joined.withColumn(UNIT, F.coalesce("joined", GROUP)).drop("joined"), unit_of

    def _refuse_joining(self, shared: Sequence[Sequence[str]]) -> None:
        """Refuse new pictures that join groups, which the parent may hold in two splits."""
        for groups in shared:
            if len({self.joined.get(each, each) for each in groups}) > 1:
                raise CorpusError(
                    f"the same bytes in the groups {' and '.join(groups[:3])} of the new images; {len(shared):,} such"
                    " case(s) in all",
                    "groups that have nothing in common: the parent may hold them in two splits",
                    "Remove the copies, or prepare all images anew",
                )

    def applied(self, accepted: DataFrame, kind: Kind = Kind.CLASSIFICATION) -> DataFrame:
        """Accepted images, with their units, with a split each; a unit is never in two unless it was given so."""
        if self.policy == "given":
            return accepted.withColumn(schema.SPLIT, F.col(GIVEN))
        if self.policy == BY_TIME:
            return accepted.join(_by_time(accepted, self.shares), UNIT)
        if self.policy == "stratified":
            dealt = stratified(accepted, self.shares, kind)
            return accepted.join(dealt, [schema.CONTENT_HASH, schema.SPECIES])
        # Without groups a unit is called as one of its contents.
        split = split_by_hash(self.shares, F.sha2(F.col(UNIT), 256) if self.has_groups else F.col(UNIT))
        is_settled = self.near_duplicates == "group"
        return accepted.withColumn(schema.SPLIT, F.coalesce(SETTLED, split) if is_settled else split)


def joined(sets: Iterable[Iterable[str]]) -> dict[str, str]:
    """Of groups that have something in common, directly or through others, the first by name: group -> that one."""
    above: dict[str, str] = {}

    def first_of(group: str) -> str:
        above.setdefault(group, group)
        while above[group] != group:
            above[group] = above[above[group]]
            group = above[group]
        return group

    for groups in sets:
        first, *others = map(first_of, groups)
        for other in others:
            one, two = sorted((first_of(first), first_of(other)))
            above[two] = one
    return {group: first_of(group) for group in above}


def _by_time(accepted: DataFrame, shares: Mapping[str, float]) -> DataFrame:
    """Unit -> split: the oldest first, units of one time together. A unit is as old as its newest picture."""
    units = accepted.groupBy(UNIT).agg(F.max(TIME).alias(TIME), F.count("*").alias("images"))
    times = units.groupBy(TIME).agg(F.sum("images").alias("images"))
    before = F.sum("images").over(Window.orderBy(TIME).rowsBetween(Window.unboundedPreceding, -1))
    total = F.sum("images").over(Window.partitionBy())
    placed = times.select(TIME, (F.coalesce(before, F.lit(0)) / total).alias("place"))
    return units.join(placed, TIME).select(UNIT, _split_at(F.col("place"), shares).alias(schema.SPLIT))


def _split_at(place: Column, shares: Mapping[str, float]) -> Column:
    """The split of a place between 0 and 1; the last one takes what rounding leaves."""
    names, edge = list(shares), 0.0
    split: Column | None = None
    for name in names[:-1]:
        edge += shares[name]
        split = (F if split is None else split).when(place < F.lit(edge), F.lit(name))
    return F.lit(names[-1]) if split is None else split.otherwise(F.lit(names[-1]))


def sample_of(hashed: DataFrame, sample: float, kind: Kind = Kind.CLASSIFICATION) -> DataFrame:
    """The share of each species' readable files with the smallest `fingerprint.sample_key`; of numbers that of all.

    Args:
        hashed: A listing with the content hash of each file, null where it cannot be read.
        sample: The share.
        kind: Of the labels.

    Returns:
        The part of the listing.
    """
    key = F.sha2(F.concat(F.lit(fingerprint.SAMPLE_PREFIX), F.col(schema.CONTENT_HASH)), 256)
    readable = hashed.where(F.col(schema.CONTENT_HASH).isNotNull()).withColumn("key", key)
    # Rounded, since 100 * 0.07 is a little more than 7.
    part = Window.partitionBy(F.lit(0) if kind == Kind.REGRESSION else F.col(schema.SPECIES))
    share = F.ceil(F.round(F.count("*").over(part) * F.lit(sample), 6))
    place = F.row_number().over(part.orderBy("key", schema.PATH))
    ranked = readable.withColumns({"place": place, "share": share})
    return ranked.where("place <= share").select(*schema.LISTING.names)


def is_sampled(share: float, start: int = 9) -> Column:
    """Whether an image is of a share of all, chosen by its content; each one is of a share of 1.

    Args:
        share: The share.
        start: The first of the eight digits of the content hash that tell: other shares of the same images need others.
    """
    place = F.conv(F.substring(schema.CONTENT_HASH, start, 8), 16, 10).cast("long")
    return place <= int(min(1.0, share) * 0xFFFFFFFF)


def split_by_hash(shares: Mapping[str, float], digest: Column | None = None) -> Column:
    """`fingerprint.split_of` in Spark SQL.

    Args:
        shares: Split -> share.
        digest: Hexadecimal digits; the content hash without.
    """
    digits = F.substring(F.col(schema.CONTENT_HASH) if digest is None else digest, 1, fingerprint.DIGITS)
    return _split_at(
        F.conv(digits, 16, 10).cast("long").cast("double") / F.lit(float(16**fingerprint.DIGITS)), shares
    )


def stratified(
    accepted: DataFrame, shares: Mapping[str, float], kind: Kind = Kind.CLASSIFICATION
) -> DataFrame:
    """Exact shares of each species' different images, in the order of their hashes; of numbers those of each tenth."""
    contents = accepted.select(schema.CONTENT_HASH, schema.SPECIES).distinct()
    stratum = F.col(schema.SPECIES)
    if kind == Kind.REGRESSION:
        stratum = F.ntile(_TENTHS).over(
            Window.orderBy(schema.number_in(F.col(schema.SPECIES)), schema.CONTENT_HASH)
        )
    contents = contents.withColumn("stratum", stratum)
    place = F.row_number().over(Window.partitionBy("stratum").orderBy(schema.CONTENT_HASH))
    total = F.count("*").over(Window.partitionBy("stratum"))
    names, edge = list(shares), 0.0
    split: Column | None = None
    for name in names[:-1]:
        edge += shares[name]
        split = (F if split is None else split).when(
            # Rounded twice, since 50 * 0.29 is a little less than 14.5.
            F.col("place") <= F.round(F.round(F.col("total") * edge, 6)),
            F.lit(name),
        )
    chosen = F.lit(names[-1]) if split is None else split.otherwise(F.lit(names[-1]))
    return (
        contents.withColumns({"place": place, "total": total})
        .withColumn(schema.SPLIT, chosen)
        .select(schema.CONTENT_HASH, schema.SPECIES, schema.SPLIT)
    )
