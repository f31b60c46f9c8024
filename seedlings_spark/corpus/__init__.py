"""From image files to a corpus: a table of pixels, a table of rejects, a manifest that adds up.

Files are decoded once, into a table beside the corpus; what needs to see all of them (conflicting labels, exact
shares, a sample) then works on hashes and names alone. The manifest is written last: a corpus without one is
half-written, and no job reads it.
"""

import contextlib
import json
import logging
import re
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import display, files, fingerprint, schema
from seedlings_spark.cluster import session
from seedlings_spark.corpus import reading
from seedlings_spark.errors import CorpusError, InputError, OptionError, OutputInUseError
from seedlings_spark.lock import Lock, is_held

_log = logging.getLogger(__name__)
FORMAT = 1
SPLIT_POLICIES = ("hash", "stratified")
CONFLICT_POLICIES = ("error", "drop")
# Bytes of pixels in one Parquet file of a corpus, and in one of its row groups, which readers hold in memory.
_FILE_BYTES = 128 * 1024 * 1024
_ROW_GROUP_BYTES = 32 * 1024 * 1024
_EXAMPLES = 3
_FOLDERS = "one folder a species, as in plants/Maize/0001.png"
_TABLE = "a table with the columns path and species"
# Words in the names of folders that are the splits of a data set, and words beside them.
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), schema.TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), schema.VALIDATION),
    **dict.fromkeys(("test", "testing", "holdout"), schema.TEST),
}
_BESIDE_SPLIT_WORDS = {"set", "data", "dataset", "images", "imgs", "split", "seg", "samples"}
# Letters of other alphabets that print as Latin ones: Cyrillic, then Greek.
_AS_LATIN = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0405\u0406\u0408"
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456\u0458"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",
    "ABEKMHOPCTYXSIJaeopcyxsijABEZHIKMNOPTYXo",
)
# Characters that take no or only white space without being of such a category.
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
# What every reader of a manifest may rely on.
_MANIFEST_KEYS: Mapping[str, type] = {
    "listed": int,
    "accepted": int,
    "rejected": int,
    "rejected_by_reason": dict,
    "duplicates": int,
    "images_of_species": dict,
    "images_of_split": dict,
    "fingerprint": str,
    "image_size": list,
    "aspect": str,
}
# What corpora of earlier releases do not have.
_LATER_KEYS: Mapping[str, type] = {"files": dict}
_REJECTS = "rejects"
_BUILDING = ".building-"


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus on disk.

    Args:
        path: The folder.
        manifest: What `manifest.json` says.
    """

    path: str
    manifest: Mapping[str, Any]
    _compared: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def images_path(self) -> str:
        """Parquet of `schema.CORPUS`, partitioned by split."""
        return files.join(self.path, "images")

    @property
    def rejects_path(self) -> str:
        """Parquet of `schema.REJECTS`."""
        return files.join(self.path, "rejects")

    @property
    def fingerprint(self) -> str:
        """Of content and labels."""
        return str(self.manifest["fingerprint"])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.manifest["image_size"]
        return int(height), int(width)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the species, sorted."""
        return tuple(sorted(self.manifest["images_of_species"]))

    def num_images(self, split: str) -> int:
        """Accepted images of a split."""
        return int(self.manifest["images_of_split"].get(split, 0))

    def images(self, spark: SparkSession, *splits: str) -> DataFrame:
        """The images of these splits (all without one), as `schema.CORPUS`.

        When a split is asked for the first time its files and rows are read once and compared with the manifest.

        Raises:
            CorpusError: They are not what `prepare` has written; names a file where one is to blame.
        """
        splits = splits or tuple(self.manifest["images_of_split"])
        self._compare_images(spark, splits)
        return _images(spark, self.path, *splits)

    def rejects(self, spark: SparkSession) -> DataFrame:
        """The rejected files, as `schema.REJECTS`, compared with the manifest as the images are."""
        if _REJECTS not in self._compared:
            self._compare_files(_REJECTS)
            with self._refusing_damage():
                reasons, checksums = _numbers_of_rejects(spark, self.path)
            self._compare_checksums(_REJECTS, checksums)
            expected = self.manifest["rejected_by_reason"]
            if reasons != expected:
                raise self._not_as_written(f"its rejects are {reasons}", str(expected))
            self._compared.add(_REJECTS)
        return _rejects(spark, self.path)

    def _compare_images(self, spark: SparkSession, splits: Sequence[str]) -> None:
        """Refuse images that are not those of the manifest: in part lost, twice there, damaged or of another corpus."""
        # Without files the fingerprint tells corpora apart, which is of all splits together.
        wanted = list(splits) if "files" in self.manifest else list(self.manifest["images_of_split"])
        if self._compared.issuperset(wanted):
            return
        folders = [f"images/{schema.SPLIT}={split}" for split in wanted]
        for folder in folders:
            self._compare_files(folder)
        self._compare_files("images", strangers_only=True)
        with self._refusing_damage():
            found = _numbers_of_images(_images(spark, self.path, *wanted), self.image_size)
        for split, folder in zip(wanted, folders, strict=True):
            self._compare_checksums(folder, found.checksums)
            self._compare_numbers(split, found)
        if "files" not in self.manifest and found.fingerprint != self.fingerprint:
            raise self._not_as_written(
                f"its images have the fingerprint {found.fingerprint[:12]}...", f"{self.fingerprint[:12]}..."
            )
        self._compared.update(wanted)

    def _compare_numbers(self, split: str, found: "_Numbers") -> None:
        of_species = {
            name: splits.get(split, 0) for name, splits in self.manifest["images_of_species"].items()
        }
        there_are = found.images_of_species(split)
        names = sorted(
            name for name in {*of_species, *there_are} if of_species.get(name, 0) != there_are.get(name, 0)
        )
        if names or sum(there_are.values()) != self.num_images(split):
            shown = ", ".join(f"{there_are.get(name, 0):,} of {name}" for name in names[:_EXAMPLES])
            wanted = ", ".join(f"{of_species.get(name, 0):,} of {name}" for name in names[:_EXAMPLES])
            raise self._not_as_written(
                f"its split {split} has {sum(there_are.values()):,} images ({shown})",
                f"{self.num_images(split):,} ({wanted})",
            )
        if found.misfits.get(split):
            height, width = self.image_size
            raise self._not_as_written(
                f"{found.misfits[split]:,} images of its split {split} have another size",
                f"{height}x{width} pixels",
            )

    def _compare_files(self, folder: str, *, strangers_only: bool = False) -> None:
        """Refuse files that are not those of the manifest, where it names them: Spark reads whatever there is."""
        if "files" not in self.manifest:
            return
        found, expected = _lengths(self.path, folder), self._listed(folder)
        for path in sorted({*found, *expected}):
            if path not in expected:
                raise self._not_as_written(f"{path} has been added", "the files that the manifest names")
            if not strangers_only and found.get(path) != expected[path]["bytes"]:
                raise self._not_as_written(
                    f"{path} has {found[path]:,} bytes" if path in found else f"{path} is missing",
                    f"{expected[path]['bytes']:,} bytes",
                )

    def _compare_checksums(self, folder: str, found: Mapping[str, str]) -> None:
        """Refuse files with other rows than were written into them, where their checksums are known."""
        for path, expected in self._listed(folder).items():
            if found.get(path, _NO_ROWS) != expected["checksum"]:
                raise self._not_as_written(
                    f"{path} has other rows than were written into it", "its rows' checksum"
                )

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        """What the manifest says of the files in a folder."""
        listed = self.manifest.get("files", {})
        return {path: of_file for path, of_file in listed.items() if path.startswith(f"{folder}/")}

    @contextlib.contextmanager
    def _refusing_damage(self) -> Iterator[None]:
        """Name the file that Spark cannot read."""
        try:
            yield
        except (Py4JError, PySparkException) as error:
            unreadable = reading.unreadable_file(error)
            if unreadable is None:
                raise
            raise self._not_as_written(
                f"{unreadable[0]} is damaged ({unreadable[1]})", "a file that can be read"
            ) from None

    def _not_as_written(self, found: str, expected: str) -> CorpusError:
        return CorpusError(
            f"{self.path} is not as prepare has written it: {found}",
            f"{expected}, as {files.join(self.path, 'manifest.json')} says",
            "Restore the corpus from a copy, or run prepare again with --overwrite",
        )


def load(path: str) -> Corpus:
    """Open a corpus that `prepare` has written.

    Raises:
        CorpusError: There is none, it is half-written or damaged, or of a format that this version does not know.
    """
    manifest_path = files.join(path, "manifest.json")
    try:
        manifest = json.loads(files.read_text(manifest_path))
    except FileNotFoundError:
        missing = not files.exists(path)
        raise CorpusError(
            f"no folder {path}" if missing else f"{path}, which has no manifest.json",
            "a corpus that `prepare` has finished (the manifest is written last)",
            "Run prepare"
            if missing
            else "It is half-written or something else: run prepare again with this --corpus",
        ) from None
    except ValueError as error:
        raise CorpusError(
            f"{manifest_path}, which is not JSON ({error})",
            "the manifest that `prepare` wrote",
            "Run prepare again",
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise CorpusError(
            f"{manifest_path} of format {found!r}",
            f"format {FORMAT}",
            "Use the version of seedlings_spark that wrote it, or run prepare again",
        )
    damage = _damage(path, manifest)
    if damage:
        raise CorpusError(
            f"{manifest_path}, {damage}",
            "a corpus as `prepare` has written it",
            "Restore the file from a copy, or run prepare again with --overwrite",
        )
    return Corpus(path, manifest)


def _damage(path: str, manifest: Mapping[str, Any]) -> str:
    """What is wrong with a corpus whose manifest has the right format; empty if nothing is."""
    there_too = {key: kind for key, kind in _LATER_KEYS.items() if key in manifest}
    for key, kind in {**_MANIFEST_KEYS, **there_too}.items():
        if not isinstance(manifest.get(key), kind):
            return f"whose {key} is {manifest.get(key)!r}"
    listed, accepted, rejected = (manifest[key] for key in ("listed", "accepted", "rejected"))
    if listed != accepted + rejected or accepted != sum(manifest["images_of_split"].values()):
        return f"in which {accepted:,} accepted and {rejected:,} rejected files do not make {listed:,} listed"
    missing = [name for name in ("images", "rejects") if not files.is_directory(files.join(path, name))]
    return f"beside which there is no {' and no '.join(missing)} folder" if missing else ""


def prepare(
    spark: SparkSession,
    images: str,
    corpus: str,
    task: reading.DecodeTask,
    *,
    split_policy: str = "hash",
    shares: Mapping[str, float],
    conflicts: str = "error",
    sample: float = 1.0,
    overwrite: bool = False,
) -> Corpus:
    """Read image files into a corpus.

    What fails leaves no trace: a corpus that is to be replaced stays until the new one is complete and is
    put back if it cannot be published. Only a process that is killed in the instant between its renames
    leaves a corpus without a manifest, which no job reads, and the old tables in `CORPUS/.building-*/old`.

    Args:
        spark: The session.
        images: A folder with one folder a species, or a CSV or Parquet table with the columns `path` and
            `species`, whose relative paths are looked up beside the table.
        corpus: The folder to write.
        task: How to decode.
        split_policy: "hash": an image's split depends on its bytes alone. "stratified": exact shares in every
            species, for which images that are added later may move others.
        shares: Split -> share, adding up to 1.
        conflicts: What to do with the same bytes under two species: "error", or "drop" (reject all copies).
        sample: Share of each species' readable files to prepare, chosen by content; at least one of each.
        overwrite: Whether a corpus that is already there may be replaced.

    Returns:
        The corpus.

    Raises:
        CorpusError: Nothing to prepare, one species only, conflicting labels, or a corpus is already there.
        OptionError: An option has a value it cannot have.
        OutputInUseError: Another run has written the corpus meanwhile.
    """
    _check_options(split_policy, shares, conflicts, sample)
    images, corpus = _qualified(images), _qualified(corpus)
    is_new = not files.exists(corpus)
    _check_target(images, corpus, overwrite)
    building = files.join(corpus, f"{_BUILDING}{uuid.uuid4().hex[:12]}")
    listing, roots, hidden = _listing(spark, images)
    try:
        # By its lock `clean` knows whether somebody is building here.
        with Lock(building, "prepare"):
            num_found = listing.count() + len(hidden)
            _log.info("listed %d files of %s", num_found, images)
            decoded, num_listed = _decode(spark, listing, roots, task, sample, building)
            if sample == 1:  # of which only what can be read is chosen
                decoded, num_listed = decoded.union(_hidden(spark, hidden)), num_listed + len(hidden)
            _log.info("read and decoded %d of %d files", num_listed, num_found)
            rows = _with_reasons(decoded, conflicts)
            _check_species(rows, images)
            _write(rows, building, split_policy, shares, task)
            written = _manifest(spark, building, num_listed, shares, task.size)
            manifest = {
                "format": FORMAT,
                **written,
                "image_size": list(task.size),
                "aspect": task.aspect,
                "formats": list(task.formats),
                "max_pixels": task.max_pixels,
                "max_bytes": task.max_bytes,
                "split_policy": split_policy,
                "split_shares": dict(shares),
                "seed": None,  # nothing is drawn: splits and samples follow from the content
                "sample": sample,
                "found": num_found,
            }
            _log.info(
                "wrote %d images of %d species (%d duplicates) and %d rejects",
                manifest["accepted"],
                len(manifest["images_of_species"]),
                manifest["duplicates"],
                manifest["rejected"],
            )
            _publish(building, corpus, manifest, overwrite)
            _log.info("published %s, fingerprint %s", corpus, manifest["fingerprint"])
    finally:
        listing.unpersist()
        _clear(building, corpus if is_new else None)
    return load(corpus)


def left_behind(path: str) -> list[str]:
    """The folders in which runs of `prepare` that are dead were building a corpus, and that nothing needs.

    Raises:
        CorpusError: A run that died between two renames has left the tables of the former corpus in one of them.
    """
    names = files.list_names(path) if files.is_directory(path) else []
    found = [files.join(path, name) for name in names if name.startswith(_BUILDING)]
    found = [each for each in found if not is_held(each)]
    for each in [] if "manifest.json" in names else found:
        old = files.join(each, "old")
        if files.exists(files.join(old, "manifest.json")):
            raise CorpusError(
                f"{path} without a manifest.json, and in {old} the corpus that was there before",
                "a corpus",
                f"Move what is in {old} back into {path}, the manifest last, or run prepare again: then call clean",
            )
    return found


def corpus_fingerprint(images: DataFrame) -> str:
    """`fingerprint.corpus_fingerprint` of a table with content hashes and species, summed by Spark."""
    row = images.agg(F.count("*"), *_fingerprint_words()).first()
    assert row is not None
    return fingerprint.combine(int(row[0]), [int(value or 0) for value in row[1:]])


def _fingerprint_words() -> list[Column]:
    """Sums over images: what `fingerprint.combine` makes a corpus fingerprint of."""
    digest = F.sha2(F.concat_ws(" ", F.col(schema.CONTENT_HASH), F.col(schema.SPECIES)), 256)
    return [
        F.sum(F.conv(F.substring(digest, 8 * word + 1, 8), 16, 10).cast("long"))
        for word in range(fingerprint.FINGERPRINT_WORDS)
    ]


def summary(corpus: Corpus) -> list[tuple[str, object]]:
    """What `prepare` prints at its end."""
    manifest = corpus.manifest
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["rejected_by_reason"].items())
    splits = ", ".join(f"{count:,} {split}" for split, count in manifest["images_of_split"].items())
    sampled = f" (a sample of {manifest['found']:,})" if manifest.get("sample", 1) < 1 else ""
    return [
        ("corpus", display.Whole(corpus.path)),
        ("listed", f"{manifest['listed']:,}{sampled}"),
        ("accepted", f"{manifest['accepted']:,} of {len(corpus.classes)} species ({splits})"),
        ("rejected", f"{manifest['rejected']:,}" + (f" ({reasons})" if reasons else "")),
        ("duplicates", f"{manifest['duplicates']:,}"),
        ("fingerprint", corpus.fingerprint),
    ]


def _check_options(split_policy: str, shares: Mapping[str, float], conflicts: str, sample: float) -> None:
    """For callers other than the job, whose options have checked themselves."""
    for name, value, choices in (
        ("split_policy", split_policy, SPLIT_POLICIES),
        ("conflicts", conflicts, CONFLICT_POLICIES),
    ):
        if value not in choices:
            raise OptionError(f"{name} {value!r}", f"one of {', '.join(choices)}", "Choose one of them")
    if not 0 < sample <= 1:
        raise OptionError(f"sample {sample}", "a share above 0 and at most 1", "Correct it")
    if not shares or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise OptionError(f"shares {dict(shares)}", "shares that add up to 1", "Correct them")


def _qualified(path: str) -> str:
    try:
        return files.qualify(path)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"the path {path!r} ({error})", "a path that Hadoop can read", "Correct the path"
        ) from None


def _check_target(images: str, corpus: str, overwrite: bool) -> None:
    """Refuse a folder in which anything would be lost or mixed up: what is replaced must be a corpus."""
    above, below = sorted((images.rstrip("/") + "/", corpus.rstrip("/") + "/"), key=len)
    if below.startswith(above):
        raise CorpusError(
            f"the corpus {corpus} and the images {images}, one of which is inside of the other",
            "two folders that are apart",
            "Give another --corpus",
        )
    if not files.exists(corpus):
        return
    if not files.is_directory(corpus):
        raise CorpusError(f"{corpus}, which is a file", "an empty or new folder", "Give another --corpus")
    names = files.list_names(corpus)
    if "manifest.json" in names and not overwrite:
        raise CorpusError(
            f"{corpus}, which already holds a corpus",
            "a new folder",
            "Give another --corpus, or add --overwrite",
        )
    strangers = [
        name
        for name in names
        if not name.startswith(".") and name != "manifest.json" and not _is_our_table(corpus, name)
    ]
    if strangers:
        raise CorpusError(
            f"{corpus}, which holds {', '.join(strangers[:_EXAMPLES])}, not written by prepare",
            "an empty or new folder",
            "Give a --corpus folder of its own",
        )


def _is_our_table(corpus: str, name: str) -> bool:
    """Whether `images` or `rejects` holds nothing but what Spark has written, and may be replaced."""
    folder = files.join(corpus, name)
    if name not in ("images", "rejects") or not files.is_directory(folder):
        return False
    kind = ("split=", "_", ".") if name == "images" else ("part-", "_", ".")
    return all(each.startswith(kind) for each in files.list_names(folder))


def _listing(spark: SparkSession, images: str) -> tuple[DataFrame, tuple[str, ...], Sequence[reading.Listed]]:
    """What is to be prepared, as `schema.LISTING`, held by Spark so that it is listed once; its roots; the hidden."""
    hidden: list[reading.Listed] = []
    try:
        if files.exists(images) and (not files.is_directory(images) or _is_parquet(images)):
            listing, roots = _listing_of_table(spark, images)
            _refuse_look_alikes(listing, images)
            return listing, roots, hidden
        if files.is_directory(images):
            _refuse_splits(images)
        listing = reading.listing_table(spark, _visible(images, hidden)).persist()
    except InputError as error:
        raise CorpusError(error.found, f"{_FOLDERS}, or {_TABLE}", error.remedy) from None
    except OSError as error:
        raise CorpusError(
            f"{images}, which cannot be listed ({error})", _FOLDERS, "Check the folder's permissions"
        ) from None
    counts = listing.agg(F.count("*"), F.count(schema.SPECIES)).first()
    assert counts is not None
    if counts[0] == 0:
        raise CorpusError(
            f"{images} is empty" + (" but for hidden and system folders and files" if hidden else ""),
            _FOLDERS,
            "Check --images, and put each picture into a folder named for its species",
        )
    if counts[1] == 0:
        raise CorpusError(
            f"{images} has {counts[0]} files and no class folders",
            _FOLDERS,
            "Move each picture into a folder named for its species",
        )
    _refuse_look_alikes(listing, images)
    return listing, (images,), hidden


def _visible(images: str, hidden: list[reading.Listed]) -> Iterator[reading.Listed]:
    """The listing of a folder without what is hidden, which is put aside."""
    for entry in reading.walk(images, by_folder=True):
        if entry.is_hidden:
            hidden.append(entry)
        else:
            yield entry


def _hidden(spark: SparkSession, hidden: Sequence[reading.Listed]) -> DataFrame:
    """What is hidden as rejects of `schema.DECODED`."""
    rows = [(one.path, None, None, None, None, "hidden", "list", one.error) for one in hidden]
    return spark.createDataFrame(rows, schema.DECODED)


def _refuse_splits(images: str) -> None:
    """Refuse folders of splits in place of species: they would become classes, and their species be lost."""
    folders = [
        name
        for name in files.list_names(images)
        if not reading.is_hidden_folder(name) and files.is_directory(files.join(images, name))
    ]
    split_of = {name: split for name in folders if (split := _split_of_folder(name))}
    given, num_splits = list(split_of), len(set(split_of.values()))
    with_species = [name for name in given if _has_folders(files.join(images, name))]
    if num_splits > 1 or with_species or (given and len(given) == len(folders)):
        raise CorpusError(
            f"{images} with the folder{'s' * (len(given) > 1)} {', '.join(given)}, which are splits and no species"
            + (f" ({with_species[0]} has folders of its own)" if with_species else ""),
            f"{_FOLDERS}; prepare deals the pictures to splits itself, by their content",
            "Merge these folders species by species, or give a table with the columns path and species as --images",
        )


def _split_of_folder(name: str) -> str | None:
    """The split that a folder is, by its name: `train`, `Test 1`, `training_set`, `val2017`."""
    words = set(re.findall(r"[a-z]+", name.casefold()))
    found = words & set(_SPLIT_WORDS)
    return _SPLIT_WORDS[min(found)] if found and words - found <= _BESIDE_SPLIT_WORDS else None


def _has_folders(folder: str) -> bool:
    return any(
        not reading.is_hidden_folder(name) and files.is_directory(files.join(folder, name))
        for name in files.list_names(folder)
    )


def look_alikes(names: Iterable[str]) -> tuple[str, str] | None:
    """Two different names that a person would take for one, escaped so that both can be told apart; None without.

    They differ in case, in white space, in invisible or composed characters, or in letters that print alike.
    """
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        other = seen.setdefault(_as_printed(name), name)
        if other != name:
            return ascii(other), ascii(name)
    return None


def _as_printed(name: str) -> str:
    """What two names have in common that look alike."""
    straight = re.sub("[\u2018\u2019\u02bc\u00b4`]", "'", name)
    letters = unicodedata.normalize("NFKC", straight).translate(_AS_LATIN)
    letters = "".join(char for char in letters if not _is_invisible(char)).casefold()
    dashes = ("-" if unicodedata.category(char) == "Pd" or char == "\u2212" else char for char in letters)
    return " ".join(unicodedata.normalize("NFKC", "".join(dashes)).split())


def _is_invisible(char: str) -> bool:
    is_mark = char in _INVISIBLE or "\ufe00" <= char <= "\ufe0f"
    return is_mark or (unicodedata.category(char) in ("Cf", "Cc") and not char.isspace())


def _refuse_look_alikes(listing: DataFrame, images: str) -> None:
    species = [row[0] for row in listing.select(schema.SPECIES).distinct().dropna().collect()]
    if pair := look_alikes(species):
        raise CorpusError(
            f"{images} with two species that look alike, {pair[0]} and {pair[1]}",
            "names that a person can tell apart",
            "Give all pictures of a species one spelling of its name",
        )


def _is_parquet(images: str) -> bool:
    return images.endswith(".parquet") or "_SUCCESS" in files.list_names(images)


def _listing_of_table(spark: SparkSession, table: str) -> tuple[DataFrame, tuple[str, ...]]:
    rows = _table(spark, table)
    missing = [column for column in (schema.PATH, schema.SPECIES) if column not in rows.columns]
    if missing:
        raise CorpusError(
            f"{table} with the columns {', '.join(rows.columns)[:200]}",
            "the columns path and species",
            f"Add {' and '.join(missing)}; a relative path is looked up beside the table",
        )
    rows = rows.select(*(F.col(name).cast("string") for name in (schema.PATH, schema.SPECIES)))
    counts = rows.agg(F.count("*"), F.sum((F.coalesce(schema.PATH, F.lit("")) == "").cast("int"))).first()
    assert counts is not None
    if counts[0] == 0 or counts[1]:
        raise CorpusError(
            f"{table} with {counts[1]} rows without a path" if counts[1] else f"{table} without a row",
            "a path and a species in every row",
            "Correct the table",
        )
    try:
        listing, roots = reading.listing_of_paths(spark, rows, files.parent(table))
    except (InputError, OSError) as error:
        raise CorpusError(f"{table}: {error}", "paths of readable files", "Correct the table") from None
    return listing.persist(), roots


def _table(spark: SparkSession, table: str) -> DataFrame:
    name = files.name(table).lower()
    is_csv = name.endswith((".csv", ".csv.gz", ".txt"))
    if not (is_csv or name.endswith(".parquet") or files.is_directory(table)):
        raise CorpusError(
            f"{table}, which is neither a folder nor a .csv or .parquet table",
            f"{_FOLDERS}, or {_TABLE}",
            "Check --images",
        )
    try:
        return reading.read_table(spark, table, "csv" if is_csv else "parquet", _TABLE)
    except InputError as error:
        raise CorpusError(error.found, error.expected, error.remedy) from None


def _decode(
    spark: SparkSession,
    listing: DataFrame,
    roots: tuple[str, ...],
    task: reading.DecodeTask,
    sample: float,
    building: str,
) -> tuple[DataFrame, int]:
    """The decoded files, from disk (each file is read and decoded once), and how many were to be."""
    target = files.join(building, "decoded")
    with reading.batches(spark):
        chosen = listing if sample == 1 else _sampled(spark, listing, roots, task, sample).persist()
        num_chosen = chosen.count()
        decoded = reading.decode_all(spark, chosen, roots, task)
        decoded.write.options(**_parquet_options(task)).parquet(target)
        if chosen is not listing:
            chosen.unpersist()
    return reading.parquet(spark, target, schema.DECODED), num_chosen


def _sampled(
    spark: SparkSession, listing: DataFrame, roots: tuple[str, ...], task: reading.DecodeTask, sample: float
) -> DataFrame:
    """The share of each species' readable files with the smallest `fingerprint.sample_key`.

    To choose by content all bytes have to be read, but only what is chosen is decoded.
    """
    hashed = reading.hash_all(spark, listing, roots, task)
    key = F.sha2(F.concat(F.lit(fingerprint.SAMPLE_PREFIX), F.col(schema.CONTENT_HASH)), 256)
    readable = hashed.where(F.col(schema.CONTENT_HASH).isNotNull()).withColumn("key", key)
    # Rounded, since 100 * 0.07 is a little more than 7.
    share = F.ceil(F.round(F.count("*").over(Window.partitionBy(schema.SPECIES)) * F.lit(sample), 6))
    place = F.row_number().over(Window.partitionBy(schema.SPECIES).orderBy("key", schema.PATH))
    ranked = readable.withColumns({"place": place, "share": share})
    return ranked.where("place <= share").select(*schema.LISTING.names)


def _parquet_options(task: reading.DecodeTask) -> dict[str, str]:
    """For tables of pixels: they do not repeat, and Parquet would look at memory after 100 rows at the earliest."""
    height, width = task.size
    return {
        **session.PARQUET_CHECKSUMS,
        "parquet.block.size": str(_ROW_GROUP_BYTES),
        "parquet.page.size.row.check.min": str(max(1, min(100, _ROW_GROUP_BYTES // (height * width * 3)))),
        f"parquet.enable.dictionary#{schema.IMAGE}": "false",
    }


def _with_reasons(decoded: DataFrame, conflicts: str) -> DataFrame:
    """The decoded files, those without a usable label rejected too."""
    no_species = F.col(schema.REASON).isNull() & F.col(schema.SPECIES).isNull()
    rows = _rejected(
        decoded, no_species, "no_species", F.lit("neither in a species' folder nor given one by a table")
    )
    of_content = rows.where(F.col(schema.REASON).isNull()).groupBy(schema.CONTENT_HASH)
    disputed = of_content.agg(F.countDistinct(schema.SPECIES).alias("claims")).where("claims > 1")
    if conflicts == "error":
        _refuse_conflicts(rows, disputed)
        return rows
    disputed = disputed.select(schema.CONTENT_HASH, F.lit(True).alias("disputed"))
    marked = rows.join(disputed, schema.CONTENT_HASH, "left")
    condition = F.col(schema.REASON).isNull() & F.col("disputed").isNotNull()
    return _rejected(
        marked, condition, "conflicting_species", F.concat(F.lit("labelled "), F.col(schema.SPECIES))
    )


def _rejected(rows: DataFrame, condition: Column, reason: str, detail: Column) -> DataFrame:
    return rows.withColumns(
        {
            schema.DETAIL: F.when(condition, detail).otherwise(F.col(schema.DETAIL)),
            schema.STAGE: F.when(condition, F.lit("label")).otherwise(F.col(schema.STAGE)),
            schema.IMAGE: F.when(~condition, F.col(schema.IMAGE)),
            schema.REASON: F.when(condition, F.lit(reason)).otherwise(F.col(schema.REASON)),
        }
    ).select(*schema.DECODED.names)


def _refuse_conflicts(rows: DataFrame, disputed: DataFrame) -> None:
    first = disputed.orderBy(schema.CONTENT_HASH).first()
    if first is None:
        return
    copies = (
        rows.where(F.col(schema.REASON).isNull() & (F.col(schema.CONTENT_HASH) == first[schema.CONTENT_HASH]))
        .groupBy(schema.SPECIES)
        .agg(F.min(schema.PATH).alias(schema.PATH))
        .orderBy(schema.SPECIES)
        .limit(_EXAMPLES)
        .collect()
    )
    paths = " and ".join(f"{copy[schema.PATH]} ({copy[schema.SPECIES]})" for copy in copies)
    raise CorpusError(
        f"the same bytes under two species: {paths}; {disputed.count()} such image(s) in all",
        "one species for each image",
        "Remove the wrong copies, or reject all of them with --conflicts drop",
    )


def _check_species(rows: DataFrame, images: str) -> None:
    species = [
        row[0]
        for row in rows.where(F.col(schema.REASON).isNull())
        .select(schema.SPECIES)
        .distinct()
        .limit(_EXAMPLES)
        .collect()
    ]
    if len(species) < 2:
        reasons = rows.where(F.col(schema.REASON).isNotNull()).groupBy(schema.REASON).count().collect()
        found = ", ".join(f"{row['count']} {row[schema.REASON]}" for row in sorted(reasons))
        raise CorpusError(
            f"{images} with usable images of {len(species)} species{f' ({species[0]})' if species else ''}"
            + (f"; rejected: {found}" if found else ""),
            "at least two species, each with a folder",
            "Check that --images is the folder above the species' folders",
        )


def _write(
    rows: DataFrame, building: str, split_policy: str, shares: Mapping[str, float], task: reading.DecodeTask
) -> None:
    height, width = task.size
    accepted = rows.where(F.col(schema.REASON).isNull())
    if split_policy == "hash":
        with_split = accepted.withColumn(schema.SPLIT, _split_by_hash(shares))
    else:
        with_split = accepted.join(_stratified(accepted, shares), [schema.CONTENT_HASH, schema.SPECIES])
    count = accepted.count()
    num_files = max(1, -(-count * height * width * 3 // _FILE_BYTES), min(8, count // 200))
    laid_out = with_split.withColumns({schema.HEIGHT: F.lit(height), schema.WIDTH: F.lit(width)})
    (
        # The mark goes into the files: who reads them without us gets the same shards.
        schema.with_content_hash(laid_out.select(*schema.CORPUS.names))
        .repartition(num_files, schema.CONTENT_HASH)
        .sortWithinPartitions(schema.SPLIT, schema.CONTENT_HASH, schema.PATH)
        .write.options(**_parquet_options(task))
        .partitionBy(schema.SPLIT)
        .parquet(files.join(building, "images"))
    )
    rejected = rows.where(F.col(schema.REASON).isNotNull()).select(*schema.REJECTS.names).coalesce(1)
    rejected.write.options(**session.PARQUET_CHECKSUMS).parquet(files.join(building, _REJECTS))


def _split_by_hash(shares: Mapping[str, float]) -> Column:
    """`fingerprint.split_of` in Spark SQL."""
    digits = F.substring(schema.CONTENT_HASH, 1, fingerprint.DIGITS)
    place = F.conv(digits, 16, 10).cast("long").cast("double") / F.lit(float(16**fingerprint.DIGITS))
    names, edge = list(shares), 0.0
    split: Column | None = None
    for name in names[:-1]:
        edge += shares[name]
        split = (F if split is None else split).when(place < F.lit(edge), F.lit(name))
    return F.lit(names[-1]) if split is None else split.otherwise(F.lit(names[-1]))


def _stratified(accepted: DataFrame, shares: Mapping[str, float]) -> DataFrame:
    """Exact shares of each species' different images, in the order of their hashes."""
    contents = accepted.select(schema.CONTENT_HASH, schema.SPECIES).distinct()
    by_hash = Window.partitionBy(schema.SPECIES).orderBy(schema.CONTENT_HASH)
    place = F.row_number().over(by_hash)
    total = F.count("*").over(Window.partitionBy(schema.SPECIES))
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


def _manifest(
    spark: SparkSession, building: str, num_listed: int, shares: Mapping[str, float], size: tuple[int, int]
) -> dict[str, Any]:
    """The numbers of what lies on disk now, checked against what was listed."""
    accepted = _images(spark, building)
    found = _numbers_of_images(accepted, size)
    reasons, checksums_of_rejects = _numbers_of_rejects(spark, building)
    checksums = {**found.checksums, **checksums_of_rejects}
    lengths = {**_lengths(building, "images"), **_lengths(building, _REJECTS)}
    of_species = {
        name: {split: found.images_of_species(split).get(name, 0) for split in shares}
        for name in sorted({name for name, _ in found.counts})
    }
    of_split = {name: sum(split[name] for split in of_species.values()) for name in shares}
    num_accepted, num_rejected = sum(of_split.values()), sum(reasons.values())
    if num_accepted + num_rejected != num_listed:
        raise CorpusError(
            f"{num_accepted:,} accepted and {num_rejected:,} rejected files",
            f"the {num_listed:,} that were listed, each exactly once",
            "This is a fault of the program or of the file system; nothing was published. Run prepare again",
        )
    return {
        "listed": num_listed,
        "accepted": num_accepted,
        "rejected": num_rejected,
        "rejected_by_reason": reasons,
        "duplicates": num_accepted - accepted.select(schema.CONTENT_HASH).distinct().count(),
        "images_of_species": of_species,
        "images_of_split": of_split,
        "fingerprint": found.fingerprint,
        "files": {
            path: {"bytes": length, "checksum": checksums.get(path, _NO_ROWS)}
            for path, length in lengths.items()
        },
    }


@dataclass(frozen=True)
class _Numbers:
    """What one pass over images has counted.

    Args:
        counts: (species, split) -> images.
        misfits: Split -> images that are not of the corpus' size.
        checksums: Path below the corpus -> `_checksum` of a file's rows.
        fingerprint: Of all these images.
    """

    counts: Mapping[tuple[str, str], int]
    misfits: Mapping[str, int]
    checksums: Mapping[str, str]
    fingerprint: str

    def images_of_species(self, split: str) -> dict[str, int]:
        return {name: count for (name, of), count in self.counts.items() if of == split}


def _numbers_of_images(images: DataFrame, size: tuple[int, int]) -> _Numbers:
    height, width = size
    fits = (F.col(schema.HEIGHT) == height) & (F.col(schema.WIDTH) == width)
    fits &= F.length(schema.IMAGE) == height * width * 3
    rows = (
        images.groupBy(schema.SPECIES, schema.SPLIT, F.col("_metadata.file_name"))
        .agg(
            F.count("*"),
            F.sum(F.when(F.coalesce(fits, F.lit(False)), 0).otherwise(1)),
            F.sum(_row_hash(schema.CORPUS.names)),
            *_fingerprint_words(),
        )
        .collect()
    )
    counts: Counter[tuple[str, str]] = Counter()
    misfits: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    words = [0] * fingerprint.FINGERPRINT_WORDS
    for species, split, file, count, num_misfits, total, *of_words in rows:
        counts[str(species), split] += int(count)
        misfits[split] += int(num_misfits)
        sums[f"images/{schema.SPLIT}={split}/{file}"] += int(total)
        words = [word + int(value or 0) for word, value in zip(words, of_words, strict=True)]
    return _Numbers(counts, misfits, _checksums(sums), fingerprint.combine(sum(counts.values()), words))


def _numbers_of_rejects(spark: SparkSession, path: str) -> tuple[dict[str, int], dict[str, str]]:
    """Rejects by reason, and the checksum of each file's rows."""
    rows = (
        _rejects(spark, path)
        .groupBy(schema.REASON, F.col("_metadata.file_name"))
        .agg(F.count("*"), F.sum(_row_hash(schema.REJECTS.names)))
        .collect()
    )
    reasons: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for reason, file, count, total in rows:
        reasons[str(reason)] += int(count)
        sums[f"{_REJECTS}/{file}"] += int(total)
    return dict(sorted(reasons.items())), _checksums(sums)


def _row_hash(columns: Sequence[str]) -> Column:
    """64 bits of all of a row, as a number that sums do not overflow; a null adds nothing to it.

    It finds what breaks, not what somebody forges.
    """
    return F.xxhash64(*columns).cast("decimal(20,0)")


def _checksums(sums: Mapping[str, int]) -> dict[str, str]:
    """Sums of `_row_hash`, whatever the order of the rows, as 16 hexadecimal digits each."""
    return {path: f"{total % 2**64:016x}" for path, total in sums.items()}


_NO_ROWS = f"{0:016x}"


def _images(spark: SparkSession, path: str, *splits: str) -> DataFrame:
    table = reading.parquet(spark, files.join(path, "images"), schema.CORPUS)
    if splits:
        table = table.where(F.col(schema.SPLIT).isin(*splits))
    return schema.with_content_hash(table.select(*schema.CORPUS.names))


def _rejects(spark: SparkSession, path: str) -> DataFrame:
    return reading.parquet(spark, files.join(path, _REJECTS), schema.REJECTS).select(*schema.REJECTS.names)


def _lengths(path: str, folder: str) -> dict[str, int]:
    """Path below a corpus -> length, of the files in a folder of it that Spark reads."""
    below = files.join(path, folder)
    if not files.is_directory(below):
        return {}
    found = {f"{folder}{status.path[len(below) :]}": status.length for status in files.walk(below)}
    return {
        name: length
        for name, length in found.items()
        if not any(part.startswith((".", "_")) for part in name.split("/"))
    }


def _publish(building: str, corpus: str, manifest: Mapping[str, Any], overwrite: bool) -> None:
    """Put the tables into place: the manifest goes first and comes last, and a failure takes all steps back."""
    overtaken = OutputInUseError(
        f"{corpus}, which another run has written meanwhile",
        "one run for one --corpus",
        "Use what the other run has written, or run prepare again with --overwrite",
    )
    if not overwrite and files.exists(files.join(corpus, "manifest.json")):
        raise overtaken
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    files.write_text(files.join(building, "manifest.json"), text)
    old = files.join(building, "old")
    files.make_directory(old)
    names = ("manifest.json", "images", "rejects")
    moves = [(corpus, old, name) for name in names if files.exists(files.join(corpus, name))]
    moves += [(building, corpus, name) for name in reversed(names)]
    done: list[tuple[str, str, str]] = []
    try:
        for source, target, name in moves:
            files.rename(files.join(source, name), files.join(target, name))
            done.append((source, target, name))
    except BaseException as error:
        for source, target, name in reversed(done):
            files.rename(files.join(target, name), files.join(source, name))
        if isinstance(error, FileExistsError):
            raise overtaken from None
        raise


def _clear(building: str, new_corpus: str | None) -> None:
    """Remove what a run leaves behind; a corpus' folder too if this run has made it for nothing."""
    try:
        files.delete(building)
        if new_corpus is not None and files.exists(new_corpus) and not files.list_names(new_corpus):
            files.delete(new_corpus)
    except OSError as error:
        _log.warning("%s could not be removed (%s)", building, error)
