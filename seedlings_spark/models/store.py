"""Model versions: publish, list, resolve, promote, roll back, import.

    STORE/NAME/v0001/           a version: nothing in it ever changes
        model/                  the fitted PipelineModel
        network.keras           the network, with the scaler folded in; model/ has no copy of its own
        network.onnx            the same for ONNX Runtime, if it has such a form; the manifest says why not
        network.int8.onnx       the same in whole numbers of 8 bits, if it was quantised
        report/                 its evaluation
        manifest.json           what it is, and the bytes of every file
        manifest.sig            who vouches for it, where somebody has signed it: Ed25519 over manifest.json's bytes
        deleted                 when it was deleted, alone in its folder: its number is not used again
    STORE/NAME/current          one line: the version in use
    STORE/NAME/evaluations/     v0001.json ...: what evaluate has last found of each on a test split
    STORE/NAME/promotions       how it came to be, one version a line, newest last

A version is built in a hidden folder and gets its name by one rename, so that it is there whole or not at
all, and of two publishers at once each gets a number of its own. On an object store, where a rename is a copy, a
publisher first creates `.claim` in the folder of a number, which the store lets only one do, and its manifest last. A
folder without a manifest is no version. A file that the manifest does not list makes a version one that was tampered
with: Spark reads folders, not lists of files.
An import is the publishing of a network that was made elsewhere.

`promotions` is what a rollback goes back along: the versions that were current before the current one, and
that one last. A rollback shortens it, so a second one goes back further. It is written before `current`:
what stands in it after the current version is of a promotion that did not come about, and is ignored.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from seedlings_spark import display, files, lock
from seedlings_spark.errors import StoreError
from seedlings_spark.kinds import ONE_SPECIES, Kind, Reading

CURRENT = "current"

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
NETWORK = "network.keras"
ONNX = "network.onnx"
INT8 = "network.int8.onnx"
PIPELINE = "model"
REPORT = "report"
PROFILE = "profile.json"
DELETED = "deleted"
EVALUATIONS = "evaluations"
CLAIM = ".claim"
# Of a manifest: from which probability a version names each of any number of species.
THRESHOLDS = "thresholds"
# Of a manifest: the column, the mean and the standard deviation of the numbers that a version was trained on.
NUMBERS = "numbers"
# What `publish` writes into a manifest itself.
RESERVED_KEYS = ("format", "name", "version", "created", "files")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"v(?:[0-9]{4}|[1-9][0-9]{4,11})")  # one spelling a number: v0001 ... v9999, v10000
_BUILDING = ".building-"
_NUM_ATTEMPTS = 1000  # each lost race is another's version


@dataclass(frozen=True)
class ModelVersion:
    """One published version of a model.

    Args:
        name: Name of the model.
        version: Name of this version, such as v0001.
        path: Its folder.
        manifest: What was published with it; not to be changed.
    """

    name: str
    version: str
    path: str
    manifest: Mapping[str, Any] = field(hash=False)

    @property
    def number(self) -> int:
        """It alone, as TensorFlow Serving, Triton and others have versions."""
        return int(self.version[1:])

    @property
    def aspect(self) -> str:
        """One of `choices.ASPECTS`: what becomes of a picture of another shape."""
        return str(self.manifest.get("aspect", "crop"))

    @property
    def network_path(self) -> str:
        """The Keras network, which takes raw pixels: the scaler is folded in."""
        return files.join(self.path, NETWORK)

    @property
    def onnx_path(self) -> str:
        """The same network for ONNX Runtime."""
        return files.join(self.path, ONNX)

    @property
    def has_int8(self) -> bool:
        """Whether a quantised network was published with it."""
        return INT8 in self.manifest["files"]

    @property
    def has_onnx(self) -> bool:
        """Whether a network for ONNX Runtime was published with it."""
        return ONNX in self.manifest["files"]

    @property
    def pipeline_path(self) -> str:
        """The fitted PipelineModel."""
        return files.join(self.path, PIPELINE)

    @property
    def report_path(self) -> str:
        """The folder of its evaluation."""
        return files.join(self.path, REPORT)

    @property
    def profile_path(self) -> str:
        """The `drift.Profile` of the corpus that it was trained on; not every version has one."""
        return files.join(self.path, PROFILE)

    @property
    def manifest_path(self) -> str:
        """The manifest, which makes the folder a version."""
        return files.join(self.path, MANIFEST)

    @property
    def signature_path(self) -> str:
        """Somebody's signature of the manifest; not every version has one."""
        return files.join(self.path, SIGNATURE)

    def check_files(self, contents: Collection[str] | None = None) -> None:
        """Compare the version's files with its manifest: all of them, and none besides.

        Args:
            contents: Paths inside of the version of those that are read and compared with their hashes; by default
                all. Of the others the lengths are compared.

        Raises:
            StoreError: A file is missing, is not what was published, or was not published; names it.
        """
        restore = "Restore the file from a copy, or publish the version again and promote that"
        listed, found = self.manifest["files"], self._files()
        for relative in sorted(found.keys() - listed.keys()):
            raise StoreError(
                f"{files.join(self.path, relative)}, a file that {self.manifest_path} does not list",
                "the files that were published, and no others: Spark would read it too",
                "Move it out of the version's folder, if you know where it comes from",
            )
        for relative, expected in listed.items():
            path, known = files.join(self.path, relative), found.get(relative)
            if known is None:
                raise StoreError(f"{path} is missing", f"{expected['bytes']} bytes, as published", restore)
            if "sha256" not in expected:
                raise StoreError(
                    f"{self.manifest_path} has no sha256 of {relative}", "one of each file", restore
                )
            if known.error is not None:
                raise StoreError(f"{path}, which cannot be read ({known.error})", "a plain file", restore)
            if known.length != expected["bytes"]:
                raise StoreError(
                    f"{path} has {known.length} bytes",
                    f"{expected['bytes']} bytes, as in {self.manifest_path}",
                    restore,
                )
            if (contents is None or relative in contents) and _sha256(path) != expected["sha256"]:
                raise StoreError(
                    f"{path}, whose sha256 is not that of {self.manifest_path}",
                    "the file that was published",
                    restore,
                )

    def _files(self) -> dict[str, files.FileStatus]:
        """Each file of the version by its path inside; without manifest, signature and Hadoop's local checksums."""
        _check_no_link(self.path)
        found = {
            status.path[len(self.path.rstrip("/")) + 1 :]: status
            for status in files.walk(self.path.rstrip("/"))
        }
        for own in (MANIFEST, SIGNATURE, CLAIM):
            found.pop(own, None)
        known = {f".{name}.crc" for name in (MANIFEST, SIGNATURE)}
        known |= {_checksums_of(relative) for relative in self.manifest["files"]}
        return {relative: status for relative, status in found.items() if relative not in known}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the network's outputs; none of a version that gives a number.

        Raises:
            StoreError: The manifest has none.
        """
        if self.kind == Kind.REGRESSION:
            return ()
        classes = self.manifest.get("classes")
        if not isinstance(classes, list) or not classes or not all(isinstance(each, str) for each in classes):
            raise self._damaged("classes", classes, "a list of the classes' names")
        return tuple(classes)

    @property
    def kind(self) -> Kind:
        """What it says of a picture."""
        return Kind.of(self.manifest)

    @property
    def reading(self) -> Reading:
        """How the network's outputs are read.

        Raises:
            StoreError: The manifest has other thresholds than one for each class, or no mean and deviation of numbers.
        """
        if self.kind == Kind.CLASSIFICATION:
            return ONE_SPECIES
        if self.kind == Kind.MULTILABEL:
            return Reading(self.kind, self._thresholds())
        found = self.manifest.get(NUMBERS)
        told = found if isinstance(found, dict) else {}
        mean, deviation = told.get("mean"), told.get("deviation")
        if not (isinstance(mean, float) and isinstance(deviation, float) and deviation > 0):
            raise self._damaged(NUMBERS, found, "a mean, and a deviation above 0")
        return Reading(self.kind, mean=mean, deviation=deviation)

    def _thresholds(self) -> tuple[float, ...]:
        found = self.manifest.get(THRESHOLDS)
        values = found.get("values") if isinstance(found, dict) else None
        if (
            not isinstance(values, list)
            or len(values) != len(self.classes)
            or not all(isinstance(each, float) and 0 <= each <= 1 for each in values)
        ):
            raise self._damaged("thresholds", found, "a probability for each class")
        return tuple(values)

    def require_one_species(self, what: str) -> "ModelVersion":
        """The version, if it names one species of each picture.

        Args:
            what: What relies on that, as a person has asked for it.

        Raises:
            StoreError: It does not.
        """
        if self.kind != Kind.CLASSIFICATION:
            raise StoreError(
                f"{what} with {self.name} {self.version}, which {self.kind.of_versions}",
                "a version that names one species",
                "Choose another version; evaluate and score take this one",
            )
        return self

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the network takes.

        Raises:
            StoreError: The manifest has none.
        """
        found = self.manifest.get("image_size")
        if (
            not isinstance(found, list)
            or len(found) != 2
            or not all(_is_count(each) and each for each in found)
        ):
            raise self._damaged("image_size", found, "[height, width] in pixels")
        return found[0], found[1]

    def _damaged(self, key: str, found: object, expected: str) -> StoreError:
        return StoreError(
            found=f"{self.manifest_path} has {json.dumps(found)} as {key}",
            expected=expected,
            remedy="Publish the version again with it",
        )


@dataclass(frozen=True)
class ModelStore:
    """The versions of one model in a store.

    Args:
        directory: The store, on any Hadoop file system; made by the first `publish`.
        name: Name of the model: letters, digits, `.`, `_` and `-`, at most 128, beginning with a letter or digit.
        require_signature: A local file with a public key (Ed25519, PEM): a version is only resolved, promoted or
            rolled back to if the private key has signed it under this name and number. "" for none.

    Raises:
        StoreError: The name is another.
    """

    directory: str
    name: str
    require_signature: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise StoreError(
                found=f"the model's name {self.name!r}",
                expected="1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', with a letter or digit first",
                remedy="Give it such a name",
            )

    @property
    def path(self) -> str:
        """The folder of all versions of the model."""
        return files.join(self.directory, self.name)

    @property
    def current_path(self) -> str:
        """The file that names the version in use."""
        return files.join(self.path, CURRENT)

    @property
    def promotions_path(self) -> str:
        """The file of the versions that were in use up to now."""
        return files.join(self.path, "promotions")

    def version_path(self, version: str) -> str:
        """The folder of a version, which need not exist.

        Raises:
            StoreError: That is no name of a version.
        """
        if not _VERSION.fullmatch(version):
            raise StoreError(
                found=f"the version {version!r}",
                expected="a name such as v0001, or 'current'",
                remedy="Choose one of the versions that there are",
            )
        return files.join(self.path, version)

    def publish(
        self, build: Callable[[str], None], manifest: Mapping[str, Any], *, promote: bool = True
    ) -> ModelVersion:
        """Build a version and publish it under the next free number.

        What crashed publishers leave behind (`.building-...`) is never a version, and is not cleaned up here; the
        lock in the folder of a publisher at work tells it from these (`left_behind`).

        Args:
            build: Is called with the path of an empty folder and writes `network.keras` into it, and `model/`
                and `report/` where there are any.
            manifest: What is to be known of the version, as JSON: at least `classes`, and `image_size` for a
                network that takes images. Keys of `RESERVED_KEYS` are added.
            promote: Whether it becomes the current version.

        Returns:
            The version.

        Raises:
            StoreError: The manifest is no JSON, or no network was built. Nothing has been published.
        """
        _check_manifest(manifest)
        building = files.join(self.path, f"{_BUILDING}{uuid.uuid4().hex}")
        content = files.join(building, "version")
        try:
            with lock.Lock(building, f"the publishing of {self.name}"):
                files.make_directory(content)
                build(content)
                found = _files_of(content)
                if NETWORK not in found:
                    raise StoreError(
                        found=f"a version of {self.name} was built without {NETWORK}",
                        expected=f"the network in {NETWORK}",
                        remedy="Let the builder write it into the folder that it is given",
                    )
                published = self._take_number(content, manifest, found)
        finally:
            files.delete(building)
        if promote:
            self.promote(published.version)
        return published

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first; none if nothing has been published.

        Raises:
            StoreError: A version's manifest is damaged or of an unknown format.
        """
        return [self._load(version) for version in self._version_names()]

    def resolve(self, version: str = CURRENT) -> ModelVersion:
        """A version by its name, or the current one.

        Raises:
            StoreError: There is no such store, model or version, or it is damaged. Says what there is.
        """
        if version != CURRENT:
            self.version_path(version)
        there_are = self._version_names()
        if not there_are:
            raise self._nothing_published()
        listed = ", ".join(there_are)
        if version == CURRENT:
            current = self.current()
            if current is None:
                raise StoreError(
                    found=f"no version of {self.name} in {self.directory} is promoted; there are {listed}",
                    expected="a current version",
                    remedy="Promote one of them, or choose one by its name",
                )
            if current not in there_are:
                raise StoreError(
                    found=f"{self.current_path} names {current}, which is missing",
                    expected=f"one of {listed}",
                    remedy="Promote one of them, or roll back",
                )
            version = current
        if version not in there_are:
            raise StoreError(
                found=f"no version {version} of {self.name} in {self.directory}",
                expected=f"one of {listed}, or 'current'",
                remedy="Choose one of them",
            )
        return self._trusted(self._load(version))

    def current(self) -> str | None:
        """The name of the version in use; None if none has been promoted.

        Raises:
            StoreError: The file that names it is damaged.
        """
        try:
            version = files.read_bytes(self.current_path).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return None
        if not _VERSION.fullmatch(version):
            raise StoreError(
                found=f"{self.current_path} holds {version[:80]!r}",
                expected="one line with the name of a version, such as v0001",
                remedy="Delete that file and promote a version",
            )
        return version

    def promote(self, version: str) -> ModelVersion:
        """Make a version the current one; nothing happens if it is.

        A reader finds the old or the new version. If two are promoted at once, one of them is current
        afterwards, and the other may be missing from what a rollback goes back along.

        Raises:
            StoreError: There is no such version, or it is damaged.
        """
        promoted = self.resolve(version)
        current = self.current()
        if promoted.version != current:
            self._write_promotions([*self._past(current), *([current] if current else []), promoted.version])
            self._write_current(promoted.version)
        return promoted

    def previous(self) -> str | None:
        """The version that a rollback would make current; None if there is none."""
        current, there_are = self.current(), self._version_names()
        past = [each for each in self._past(current) if each != current and each in there_are]
        return past[-1] if past else None

    def delete(self, version: str) -> int:
        """Delete a version that is not the current one; its number is never used again.

        Without its manifest, which goes first, it is no version any more. What is left of one whose deletion was cut
        short is removed by `left_behind` and `files.delete`.

        Returns:
            The bytes that are freed.

        Raises:
            StoreError: There is no such version, or it is the current one.
        """
        self.version_path(version)
        there_are = self._version_names()
        if version not in there_are:
            raise StoreError(
                found=f"no version {version} of {self.name} in {self.directory}",
                expected=f"one of {', '.join(there_are)}" if there_are else "a version, but there is none",
                remedy="Choose one of them",
            )
        if version == self.current():
            raise StoreError(
                found=f"{self.name} {version}, which is the current version",
                expected="one that is not in use",
                remedy="Promote another one first",
            )
        path = self.version_path(version)
        freed = files.tree_size(path)
        files.delete(files.join(path, MANIFEST))
        files.delete(self._evaluation_path(version))
        self._empty(path)
        return freed

    def evaluation(self, version: str) -> dict[str, Any] | None:
        """What `evaluate` has found of a version on the test split of a corpus; None where it has not been called.

        Raises:
            StoreError: It cannot be read.
        """
        path = self._evaluation_path(version)
        try:
            found = json.loads(files.read_text(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            found = error
        interval = found.get("accuracy_interval") if isinstance(found, dict) else None
        if not isinstance(interval, list) or not isinstance(found.get("accuracy"), float):
            raise StoreError(
                f"{path}, which is no evaluation", "what evaluate has written", "Call evaluate again"
            )
        return dict(found)

    def record_evaluation(self, version: str, numbers: Mapping[str, Any]) -> None:
        """Write down what was found of a version on a test split, beside it: nothing in a version ever changes."""
        files.write_text(self._evaluation_path(version), _to_json(numbers))

    def _evaluation_path(self, version: str) -> str:
        return files.join(self.path, EVALUATIONS, f"{files.name(self.version_path(version))}.json")

    def left_behind(self) -> list[str]:
        """Folders of publishers that are dead, and of versions whose deletion was cut short."""
        found = files.list_names(self.path) if files.is_directory(self.path) else []
        places = [files.join(self.path, name) for name in found if name.startswith(_BUILDING)]
        left = [place for place in places if not lock.is_held(place)]
        versions = set(self._version_names())
        for name in found:
            if _VERSION.fullmatch(name) and name not in versions:
                place = files.join(self.path, name)
                if not files.is_directory(place) or self._is_being_published(place):
                    continue
                there = set(files.list_names(place))
                if MANIFEST not in there and there - {DELETED}:
                    left.append(place)
        return left

    def _is_being_published(self, place: str) -> bool:
        """Whether a publisher who has claimed the folder of a version is at work."""
        try:
            building = files.read_text(files.join(place, CLAIM))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return building.startswith(_BUILDING) and lock.is_held(files.join(self.path, building))

    def remove_left_behind(self, place: str) -> None:
        """Remove one of `left_behind`."""
        if files.name(place).startswith(_BUILDING):
            files.delete(place)
        else:
            self._empty(place)

    def _empty(self, path: str) -> None:
        """Remove all of a version's folder but the folder, which keeps its number from being used again."""
        # No file system keeps an empty folder for sure.
        files.write_text(files.join(path, DELETED), f"{datetime.now(UTC).isoformat(timespec='seconds')}\n")
        for name in files.list_names(path):
            if name != DELETED:
                files.delete(files.join(path, name))

    def rollback(self) -> ModelVersion:
        """Make the version current that was current before; once more goes back further.

        Versions that have been deleted since are passed over.

        Raises:
            StoreError: No version was current before.
        """
        there_are = self._version_names()
        if not there_are:
            raise self._nothing_published()
        current = self.current()
        past = self._past(current)
        while past and (past[-1] == current or past[-1] not in there_are):
            past.pop()
        if not past:
            raise StoreError(
                found=f"no version of {self.name} was current before {current or 'now'}; "
                f"there are {', '.join(there_are)}",
                expected="an earlier promotion to go back to",
                remedy="Promote the version that you want",
            )
        version = self._trusted(self._load(past[-1]))
        self._write_current(version.version)
        self._write_promotions(past)
        return version

    def verify(self, version: str = CURRENT, contents: Collection[str] | None = None) -> ModelVersion:
        """A version, after a comparison of its files with its manifest; see `ModelVersion.check_files`.

        Raises:
            StoreError: As for `resolve`, or a file is not as it was published.
        """
        verified = self.resolve(version)
        verified.check_files(contents)
        return verified

    def sign(self, version: str, key: str) -> ModelVersion:
        """Sign a version's manifest, and so all of its files, after a look whether they are what was published.

        Args:
            version: Its name, or `current`.
            key: A local file with a private key (Ed25519, PEM, without a password).

        Raises:
            StoreError: No such version, a file that is not as it was published, or no such key.
        """
        private = _private_key(key)
        signed = ModelStore(self.directory, self.name).verify(version)
        files.write_bytes(signed.signature_path, private.sign(files.read_bytes(signed.manifest_path)))
        return signed

    def is_signed(self, version: ModelVersion) -> bool:
        """Whether the key of `require_signature` has signed a version under its name and number.

        Raises:
            StoreError: No such key.
        """
        public = _public_key(self.require_signature)
        try:
            content = files.read_bytes(version.manifest_path)
            public.verify(files.read_bytes(version.signature_path), content)
        except (FileNotFoundError, IsADirectoryError, InvalidSignature):
            return False
        # What was signed is what is used, and is no other version's that was put in this place.
        signed = json.loads(content)
        return bool(signed == version.manifest and _name_of(signed) == (self.name, version.version))

    def _take_number(
        self, building: str, manifest: Mapping[str, Any], found: Mapping[str, Any]
    ) -> ModelVersion:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        for _ in range(_NUM_ATTEMPTS):
            # Folders without a manifest count here: their names are not free.
            numbers = [int(each[1:]) for each in files.list_names(self.path) if _VERSION.fullmatch(each)]
            version = f"v{max(numbers, default=0) + 1:04d}"
            whole = {
                "format": Kind.of(manifest).manifest_format,
                "name": self.name,
                "version": version,
                "created": created,
                **manifest,
                "files": found,
            }
            try:
                self._put(building, self.version_path(version), _to_json(whole))
            except FileExistsError:
                continue
            return self._load(version)
        raise StoreError(
            found=f"{_NUM_ATTEMPTS} numbers in {self.path} were taken by others in the last moment",
            expected="a free number",
            remedy="Publish again when fewer publish at once",
        )

    @staticmethod
    def _put(building: str, path: str, manifest: str) -> None:
        """Give what was built its place, which it has to itself; the manifest, which makes it a version, comes last.

        Raises:
            FileExistsError: Another one has this place.
        """
        if files.renames(path):
            files.write_text(files.join(building, MANIFEST), manifest)
            files.rename(building, path)
            return
        files.create(files.join(path, CLAIM), files.name(files.parent(building)).encode())
        for name in files.list_names(building):
            files.rename(files.join(building, name), files.join(path, name))
        files.create(files.join(path, MANIFEST), manifest.encode("utf-8"))

    def _version_names(self) -> list[str]:
        """The names of the folders with a manifest, in the order of their numbers."""
        try:
            found = files.list_names(self.path)
        except FileNotFoundError:
            return []
        versions = [each for each in found if _VERSION.fullmatch(each)]
        return sorted(
            (each for each in versions if files.exists(files.join(self.path, each, MANIFEST))),
            key=lambda each: int(each[1:]),
        )

    def _load(self, version: str) -> ModelVersion:
        path = self.version_path(version)
        manifest_path = files.join(path, MANIFEST)
        restore = "Restore it from a copy, or delete the version's folder"
        try:
            manifest = json.loads(files.read_bytes(manifest_path))
        except (ValueError, IsADirectoryError) as error:  # a ValueError is bad JSON, or bad UTF-8
            raise StoreError(f"{manifest_path} is damaged: {error}", "a JSON object", restore) from error
        if not isinstance(manifest, dict):
            raise StoreError(f"{manifest_path} holds {type(manifest).__name__}", "a JSON object", restore)
        kind = manifest.get("kind", Kind.CLASSIFICATION.value)
        expected = (Kind(kind) if kind in list(Kind) else Kind.CLASSIFICATION).manifest_format
        if kind not in list(Kind) or manifest.get("format") != expected:
            raise StoreError(
                found=f"{manifest_path} has format {manifest.get('format')!r}"
                + (f" of kind {kind!r}" if kind != Kind.CLASSIFICATION else ""),
                expected=f"format {expected}",
                remedy="Use the release of this software that published it, or a newer one",
            )
        listed = manifest.get("files")
        if not isinstance(listed, dict) or not all(_is_file(*item) for item in listed.items()):
            raise StoreError(
                found=f"{manifest_path} has no list of files, or a damaged one",
                expected="the length of each file by its path inside of the version",
                remedy=restore,
            )
        return ModelVersion(self.name, version, path, manifest)

    def _trusted(self, version: ModelVersion) -> ModelVersion:
        """The version, if it is signed or need not be."""
        if self.require_signature and not self.is_signed(version):
            raise StoreError(
                f"{version.path}, which the owner of {self.require_signature} has not signed as {self.name}"
                f" {version.version}",
                "a valid signature, as --require-signature asks for",
                f"If you trust it, sign it: {display.command()} models sign --model-version {version.version}"
                " --key FILE",
            )
        return version

    def _nothing_published(self) -> StoreError:
        if not files.is_directory(self.directory):
            return StoreError(
                found=f"no store at {self.directory}",
                expected="a folder with models in it",
                remedy="Give the folder that a training run published to",
            )
        there_are = names(self.directory)
        if self.name not in there_are:
            return StoreError(
                found=f"no model {self.name} in {self.directory}",
                expected=f"one of {', '.join(there_are)}" if there_are else "a model, but there is none",
                remedy="Choose one of them" if there_are else "Train one and publish it there",
            )
        return StoreError(
            found=f"no version of {self.name} in {self.directory}",
            expected="a folder such as v0001 with a manifest.json",
            remedy="Train the model and publish it there",
        )

    def _past(self, current: str | None) -> list[str]:
        """The versions that were current before `current`, newest last."""
        try:
            lines = files.read_bytes(self.promotions_path).decode("utf-8", "replace").split()
        except FileNotFoundError:
            return []
        promoted = [line for line in lines if _VERSION.fullmatch(line)]
        if current in promoted:
            return promoted[: len(promoted) - 1 - promoted[::-1].index(current)]
        return promoted

    def _write_current(self, version: str) -> None:
        files.write_text(self.current_path, version + "\n")

    def _write_promotions(self, versions: list[str]) -> None:
        files.write_text(self.promotions_path, "".join(f"{version}\n" for version in versions))


def table(store: ModelStore) -> str:
    """All versions of a model for a person to read, the current one marked; numbers are accuracies of splits.

    Raises:
        StoreError: There is none, or a version is damaged.
    """
    versions, current = store.versions(), store.current()
    if not versions:
        raise store._nothing_published()
    signed = ["signed"] if store.require_signature else []
    rows = [("", "version", "created", "validation", "test", "network", "corpus", *signed)]
    for version in versions:
        metrics = version.manifest.get("metrics")
        accuracy = metrics.get("val_accuracy") if isinstance(metrics, dict) else None
        rows.append(
            (
                "*" if version.version == current else "",
                version.version,
                display.shown(str(version.manifest.get("created", "-"))[:10]),
                f"{accuracy:.4f}" if isinstance(accuracy, float) else "-",
                _test_accuracy(store, version.version),
                *_network_and_corpus(version.manifest),
                *(["yes" if store.is_signed(version) else "no"] if store.require_signature else []),
            )
        )
    return display.aligned(rows)


def _test_accuracy(store: ModelStore, version: str) -> str:
    """What `evaluate` has found last, for a table; a damaged record is one of those that `evaluate` writes anew."""
    try:
        found = store.evaluation(version)
    except StoreError:
        found = None
    return f"{found['accuracy']:.4f}" if found else "-"


def _network_and_corpus(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """What was trained on what: names, and of a corpus the beginning of its fingerprint."""
    options, corpus = (manifest.get(key) for key in ("options", "corpus"))
    network = options.get("network") if isinstance(options, dict) else None
    network = str(network or manifest.get("imported_from") or "-").rpartition("/")[2]
    about = ""
    if isinstance(corpus, dict) and corpus.get("path"):
        about = (
            f"{files.name(str(corpus['path']).rstrip('/'))} {str(corpus.get('fingerprint', ''))[:8]}".strip()
        )
    return display.shown(network), display.shown(about) or "-"


def names(directory: str) -> list[str]:
    """The names of the models in a store that can be models' names, in order.

    Raises:
        StoreError: There is no store.
    """
    try:
        found = files.list_names(directory)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            found=f"no store at {directory}",
            expected="a folder with models in it",
            remedy="Give the folder that a training run published to",
        ) from error
    return [
        each for each in found if _NAME.fullmatch(each) and files.is_directory(files.join(directory, each))
    ]


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    reserved = [key for key in RESERVED_KEYS if key in manifest]
    if reserved:
        raise StoreError(
            found=f"a manifest with {', '.join(reserved)}",
            expected="none of the keys that are written on publishing",
            remedy="Leave them out",
        )
    try:
        _to_json(manifest)
    except (TypeError, ValueError) as error:
        raise StoreError(
            found=f"a manifest that cannot be written as JSON: {error}",
            expected="texts, finite numbers, lists and mappings",
            remedy="Convert the values first",
        ) from error


def _to_json(manifest: Mapping[str, Any]) -> str:
    return json.dumps(dict(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _files_of(directory: str) -> dict[str, dict[str, Any]]:
    """Path inside of the folder -> length and hash of each file."""
    found: dict[str, dict[str, Any]] = {}
    for status in files.walk(directory):
        relative = status.path.removeprefix(directory + "/")
        name = files.name(relative)
        if name.startswith(".") and name.endswith(".crc"):
            continue  # Hadoop's local checksums do not come along when a store is copied to HDFS
        if status.error is not None:
            raise StoreError(
                found=f"{relative} cannot be read: {status.error}",
                expected="files that can be published",
                remedy="Let the builder write plain files only",
            )
        found[relative] = {"bytes": status.length, "sha256": _sha256(status.path)}
    return found


def _checksums_of(relative: str) -> str:
    """Where Hadoop's local file system keeps the checksums of a file."""
    folder, slash, name = relative.rpartition("/")
    return f"{folder}{slash}.{name}.crc"


def _check_no_link(path: str) -> None:
    """What a link leads to is not the version's, and may be something else tomorrow."""
    if not files.is_local(path):
        return
    for folder, folders, found in os.walk(files.local_path(path)):
        for name in (*folders, *found):
            if (Path(folder) / name).is_symlink():
                raise StoreError(
                    f"{display.shown(str(Path(folder) / name))}, which is a link",
                    "plain files and folders in a version",
                    "Copy what it leads to in its place, or publish the version again",
                )


def _name_of(manifest: object) -> tuple[object, object] | None:
    return (manifest.get("name"), manifest.get("version")) if isinstance(manifest, dict) else None


def _private_key(file: str) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(_pem(file), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(
            f"{file}, which holds no Ed25519 private key, or one with a password",
            "a private key in PEM",
            "Make one with `openssl genpkey -algorithm ed25519 -out FILE`",
        )
    return key


def _public_key(file: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(_pem(file))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise StoreError(
            f"{file}, which holds no Ed25519 public key",
            "the public key, in PEM, of whom you trust",
            "Ask for it; its owner makes it with `openssl pkey -in PRIVATE -pubout -out FILE`",
        )
    return key


def _pem(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise StoreError(
            f"the key {file}, which cannot be read ({error.strerror})",
            "a file on the driver's machine",
            "Check the path; with --deploy-mode cluster send it along with --files",
        ) from None


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    for block in files.read_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_file(relative: object, properties: object) -> bool:
    return (
        isinstance(relative, str)
        and bool(relative)
        and not relative.startswith("/")
        and ".." not in relative.split("/")
        and isinstance(properties, dict)
        and _is_count(properties.get("bytes"))
        and set(properties) <= {"bytes", "sha256"}
    )
