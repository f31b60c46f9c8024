"""Options: what is refused, by whose name, and what wins."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedlings_spark import config
from seedlings_spark.config.options import toml_value
from seedlings_spark.config.suggestions import ALSO
from seedlings_spark.errors import OptionError
from tests.texts import CONTROLS, texts

ROOT = Path(__file__).parents[2]
GIVEN = {
    "other": "o",
    "corpus": "c",
    "store": "s",
    "report": "r",
    "images": "i",
    "output": "o",
    "run": "n",
    "space": "t",
    "scores": "s",
    "labels": "l",
    "features": "f",
    "to": "p",
    "paths": "p",
}


def required(options: Any) -> dict[str, Any]:
    one_of_some = {"output": "o"} if options in (config.CleanOptions, config.ForgetOptions) else {}
    one_of_some |= {"images": "i", "store": "s"} if options is config.FeaturizeOptions else {}
    return one_of_some | {
        field.name: GIVEN[field.name] for field in dataclasses.fields(options) if field.metadata["required"]
    }


def toml(tmp_path: Path, text: str) -> str:
    file = tmp_path / "my options.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def refused(job: str, flags: dict[str, Any], file: str = "") -> OptionError:
    options = config.JOBS[job]
    with pytest.raises(OptionError) as caught:
        config.resolve(options, job, {**required(options), **flags}, file)
    return caught.value


def train(flags: dict[str, Any] | None = None, file: str = "") -> config.TrainOptions:
    return config.resolve(
        config.TrainOptions, "train", {**required(config.TrainOptions), **(flags or {})}, file
    )


# --- unknown things are named


def test_an_unknown_key_is_named_with_its_place_and_the_nearest_known_one(tmp_path: Path) -> None:
    file = toml(tmp_path, "[train]\nepohcs = 3\n")
    error = refused("train", {}, file)
    assert error.found == f"unknown option 'epohcs' in [train] of {file}"
    assert "epochs" in error.expected and "batch_size" in error.expected
    assert error.remedy == "Did you mean epochs?"


def test_a_key_like_no_other_is_to_be_removed(tmp_path: Path) -> None:
    assert refused("train", {}, toml(tmp_path, "[train]\nqqqq = 3\n")).remedy == "Remove it"


def test_an_unknown_table_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    error = refused("train", {}, toml(tmp_path, "[trian]\nepochs = 3\n"))
    assert "the table 'trian'" in error.found
    assert error.remedy == "Did you mean train?"


def test_a_key_outside_of_any_table_is_refused(tmp_path: Path) -> None:
    error = refused("train", {}, toml(tmp_path, "epochs = 3\n"))
    assert "the key 'epochs'" in error.found and "[train]" not in error.found


def test_a_key_that_has_the_name_of_a_table_is_refused(tmp_path: Path) -> None:
    assert "the key 'train'" in refused("train", {}, toml(tmp_path, "train = 3\n")).found


def test_a_mistake_in_the_table_of_another_job_does_not_stop_this_one(tmp_path: Path) -> None:
    assert train(file=toml(tmp_path, "[score]\nnonsense = 1\n")).epochs == 30


@pytest.mark.parametrize(
    "content", [b"[train\n", b"[train]\nepochs = \n", b"\xff\xfe", b"[train]\nname = 'a\n"]
)
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    error = refused("train", {}, str(file))
    assert str(file) in error.found and "not TOML" in error.found


@pytest.mark.parametrize("name", ["missing.toml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    assert f"--config {tmp_path / name}" in refused("train", {}, str(tmp_path / name)).found


# --- types


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epochs", "3.0", "a whole number, at least 1, in epochs"),
        ("epochs", "true", "a whole number"),
        ("epochs", '"3"', "a whole number"),
        ("epochs", "[3]", "a whole number"),
        ("epochs", "1979-05-27", "a whole number"),
        ("learning_rate", "true", "a number, above 0"),
        ("learning_rate", '"0.1"', "a number"),
        ("learning_rate", "1" + "0" * 400, "a number"),
        ("promote", "1", "text"),
        ("promote", '"yes"', "one of always, better, never"),
        ("encrypt", "1", "true or false"),
        ("encrypt", '"yes"', "true or false"),
        ("name", "5", "text"),
        ("augment", "[1]", "text"),
        ("augment", "{flip = true}", "text"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_place(
    tmp_path: Path, key: str, value: str, expected: str
) -> None:
    file = toml(tmp_path, f"[train]\n{key} = {value}\n")
    error = refused("train", {}, file)
    assert error.found.startswith(f"{key} = ") and error.found.endswith(f" in [train] of {file}")
    assert error.expected.startswith(expected)


@pytest.mark.parametrize("value", ["three", "", "1.5", "1e3", "0x10", "9" * 5000])
def test_a_flag_that_is_no_whole_number_is_refused_by_its_name(value: str) -> None:
    error = refused("train", {"epochs": value})
    assert error.found == f"--epochs {value}" and error.remedy == "Correct --epochs"


def test_a_whole_number_serves_where_a_number_is_wanted(tmp_path: Path) -> None:
    rate = train(file=toml(tmp_path, "[train]\nlearning_rate = 1\n")).learning_rate
    assert rate == 1.0 and type(rate) is float


def test_flags_are_text_and_become_numbers() -> None:
    options = train({"epochs": "7", "learning_rate": "1e-2", "seed": "-3"})
    assert (options.epochs, options.learning_rate, options.seed) == (7, 0.01, -3)


# --- ranges


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    ("job", "name"),
    [("train", "learning_rate"), ("prepare", "sample"), ("score", "max_reject_fraction")],
)
def test_a_number_that_is_not_finite_is_refused(job: str, name: str, value: str) -> None:
    assert refused(job, {name: value}).found.startswith(config.flag_of(name))


@pytest.mark.parametrize(
    ("job", "name", "value", "expected"),
    [
        ("train", "epochs", "0", "at least 1, in epochs"),
        ("train", "num_workers", "-1", "at least 1"),
        ("train", "learning_rate", "0", "above 0"),
        ("train", "memory_budget_mb", "15", "at least 16, in MB"),
        ("prepare", "image_size", "7", "from 8 to 2048, in pixels"),
        ("prepare", "image_size", "2049", "from 8 to 2048, in pixels"),
        ("prepare", "sample", "0", "above 0 and at most 1"),
        ("prepare", "sample", "1.01", "above 0 and at most 1"),
        ("prepare", "max_reject_fraction", "-0.1", "from 0 to 1"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(
    job: str, name: str, value: str, expected: str
) -> None:
    error = refused(job, {name: value})
    flag, _, shown = error.found.partition(" ")
    assert (flag, float(shown), error.expected) == (config.flag_of(name), float(value), expected)


def test_workers_may_be_a_range(tmp_path: Path) -> None:
    file = toml(tmp_path, '[train]\nnum_workers = "3-9"\nshards = 9\n')
    for flags, expected in (({}, (3, 9)), ({"num_workers": "2-4"}, (2, 4)), ({"num_workers": "9"}, (3, 9))):
        options = config.resolve(
            config.TrainOptions, "train", {"corpus": "c", "store": "s", **flags}, str(file)
        )
        assert (options.min_workers, options.num_workers) == expected
    for value, found in (
        ("4-2", "--min-workers 4, --num-workers 2 and --shards 0"),
        ("2-", "--num-workers 2-"),
    ):
        assert refused("train", {"num_workers": value}).found == found
    found = refused("train", {"num_workers": "2-4", "shards": "3"}).found
    assert found == "--min-workers 2, --num-workers 4 and --shards 3"
    found = refused("train", {"num_workers": "2-8", "min_workers": "5"}).found
    assert found == "--num-workers 2-8 with --min-workers 5"


def test_workers_may_be_as_many_as_there_is_room_for(tmp_path: Path) -> None:
    file = toml(tmp_path, '[train]\nnum_workers = "auto"\nshards = 9\n')
    for flags, expected in (
        ({}, (1, 9)),
        ({"shards": "4"}, (1, 4)),
        ({"min_workers": "3"}, (3, 9)),
        ({"num_workers": "2"}, (0, 2)),
    ):
        options = train(flags, file)
        assert (options.min_workers, options.num_workers) == expected
    error = refused("train", {"num_workers": "auto"})
    assert error.found == "--num-workers auto without --shards"
    assert "--num-workers auto --shards 8" in error.remedy
    assert refused("train", {"epochs": "auto"}).found == "--epochs auto"


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (
            {"num_workers": "auto", "shards": "4", "mode": "asynchronous"},
            "--mode asynchronous with --min-workers 1",
        ),
        ({"num_workers": "2", "shards": "4", "mode": "hogwild"}, "--mode hogwild with --min-workers 0"),
        ({"rule": "adag"}, "--rule adag with --mode synchronous"),
        ({"rule": "eamsgd", "mode": "asynchronous"}, "--rule eamsgd with --optimizer adam and --momentum 0"),
        ({"exchange": "workers", "frequency": "epoch"}, "--exchange workers with --mode synchronous"),
        ({"drop_slow": "1", "shards": "8"}, "--drop-slow 1 with --mode synchronous"),
        ({"drop_slow": "3", "mode": "asynchronous"}, "--drop-slow 3 with --mode asynchronous"),
        ({"drop_slow": "3"}, "--drop-slow 3 with --min-workers 0, --num-workers 2 and --shards 0"),
        ({"server_port": "4110-4100"}, "--server-port 4110-4100"),
        ({"worker_port": "http"}, "--worker-port http"),
    ],
)
def test_workers_and_exchanges_that_cannot_be_are_refused_without_spark(
    flags: dict[str, str], found: str
) -> None:
    assert refused("train", flags).found.startswith(found)


def test_a_number_out_of_range_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "[train]\nepochs = 0\n")
    assert refused("train", {}, file).found == f"epochs = 0 in [train] of {file}"


def test_a_head_of_a_network_of_ones_own_takes_what_is_done_to_images() -> None:
    given = {"corpus": "c", "store": "s", "fine_tune": "head", "network": "own.keras"}
    assert config.TrainOptions(**given, cutmix=1.0).cutmix == 1.0  # type: ignore[arg-type]


def test_options_that_a_program_makes_are_checked_too() -> None:
    with pytest.raises(OptionError, match="--epochs 0"):
        config.TrainOptions(corpus="c", store="s", epochs=0)


def test_an_unknown_choice_is_refused_with_the_nearest() -> None:
    error = refused("prepare", {"split_policy": "stratifeid"})
    assert error.found == "--split-policy stratifeid"
    assert (error.expected, error.remedy) == (
        "one of auto, hash, stratified, given",
        "Did you mean stratified?",
    )


@pytest.mark.parametrize(
    ("job", "flags", "found"),
    [
        ("prepare", {"split_shares": ["0.7", "0.3"]}, "--split-shares 0.7 0.3"),
        ("prepare", {"split_shares": ["0.7", "0.2", "0.2"]}, "--split-shares 0.7 0.2 0.2"),
        ("prepare", {"split_shares": ["0", "0.5", "0.5"]}, "--split-shares 0.0 0.5 0.5"),
        ("prepare", {"split_shares": ["2", "-0.5", "-0.5"]}, "--split-shares 2.0"),
        ("prepare", {"formats": []}, "no format in --formats"),
        ("prepare", {"formats": ["png", "svg"]}, "--formats svg"),
        ("train", {"augment": ["none", "flip"]}, "--augment none flip"),
        ("train", {"frequency": "0"}, "--frequency 0"),
        ("train", {"frequency": "²"}, "--frequency ²"),
        ("train", {"frequency": "epochs"}, "--frequency epochs"),
        (
            "train",
            {"fine_tune": "staged", "network": "efficientnet-lite0"},
            "--fine-tune staged with --network efficientnet-lite0 and --weights none",
        ),
        (
            "train",
            {
                "fine_tune": "staged",
                "network": "efficientnet-lite0",
                "weights": "imagenet",
                "ema": "0.9",
                "keep": "last",
            },
            "--ema 0.9 with --fine-tune staged and --layer-decay 0.1",
        ),
        (
            "train",
            {"head_on": "stages"},
            "--head-on stages with --network plain, --fine-tune all and --augment flip turn",
        ),
        (
            "train",
            {"head_on": "stages", "fine_tune": "head", "network": "ResNet50", "augment": ["turn"]},
            "--head-on stages with --network ResNet50, --fine-tune head and --augment turn",
        ),
        (
            "train",
            {"cutmix": "1", "fine_tune": "head", "network": "ResNet50"},
            "--cutmix 1 with --fine-tune head and --augment flip turn",
        ),
        ("train", {"folds": "3", "schedule": "plateau"}, "--folds 3 with --schedule plateau"),
        ("train", {"schedule": "plateau", "warm_up": "0.1"}, "--warm-up 0.1 with --schedule plateau"),
        (
            "train",
            {"curriculum": "loss", "curriculum_epochs": "20", "epochs": "20"},
            "--curriculum loss with --curriculum-epochs 20 of --epochs 20",
        ),
        (
            "train",
            {"curriculum": "length", "epochs": "1"},
            "--curriculum length with --curriculum-epochs 0 of --epochs 1",
        ),
        ("evaluate", {"tta": "3"}, "--tta 3"),
        ("featurize", {"corpus": "c"}, "--images and --corpus"),
        ("featurize", {"store": ""}, "neither --store nor --network"),
        ("featurize", {"store": "", "network": "plain"}, "--network plain"),
        ("models", {"action": "promote"}, "models promote without --model-version"),
        ("models", {"action": "import"}, "models import without --network and --classes"),
        ("models", {"action": "import", "network": "n.keras"}, "models import without --classes"),
        ("models", {"action": "remove"}, "--action remove"),
        ("models", {"action": "delete"}, "models delete without --model-version"),
        ("clean", {"run": "r"}, "clean with --output and --run"),
        ("forget", {"output": ""}, "forget with none of --output, --corpus and --store"),
        ("clean", {"older_than": "30"}, "--older-than 30"),
    ],
)
def test_what_does_not_go_together_is_refused(job: str, flags: dict[str, Any], found: str) -> None:
    assert refused(job, flags).found == found


def test_all_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(OptionError) as caught:
        config.resolve(config.TrainOptions, "train", {"store": ""})
    assert caught.value.found == "no --corpus, --store"


# --- what wins


def test_a_flag_wins_over_the_file_which_wins_over_the_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "[train]\nepochs = 4\nbatch_size = 5\npromote = false\n")
    options = train({"epochs": "6"}, file)
    assert (options.epochs, options.batch_size, options.promote, options.num_workers) == (6, 5, "never", 2)
    assert train({"promote": True}, file).promote == "always"


def test_required_options_can_come_from_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, '[train]\ncorpus = "a"\nstore = "b"\n')
    options = config.resolve(config.TrainOptions, "train", {}, file)
    assert (options.corpus, options.store) == ("a", "b")


def test_a_wrong_value_in_the_file_is_an_error_even_where_a_flag_wins(tmp_path: Path) -> None:
    assert "epochs = 0" in refused("train", {"epochs": "3"}, toml(tmp_path, "[train]\nepochs = 0\n")).found


def test_several_values_become_a_tuple_and_a_single_one_too(tmp_path: Path) -> None:
    assert train({"augment": ["zoom", "flip"]}).augment == ("zoom", "flip")
    assert train(file=toml(tmp_path, "[train]\naugment = 'zoom'\n")).augment == ("zoom",)
    shares = config.resolve(
        config.PrepareOptions,
        "prepare",
        {**required(config.PrepareOptions), "split_shares": ["1", "0", "0"]},
    ).split_shares
    assert shares == (1.0, 0.0, 0.0) and all(type(share) is float for share in shares)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        train().epochs = 3  # type: ignore[misc]


# --- the whole list


@pytest.mark.parametrize("job", config.JOBS)
def test_every_option_has_a_text_and_a_reason(job: str) -> None:
    for field in dataclasses.fields(config.JOBS[job]):
        assert field.metadata["text"], field.name
        assert field.metadata["reason"], field.name
    assert (config.JOBS[job].__doc__ or "").strip().endswith(".")


@pytest.mark.parametrize("job", config.JOBS)
def test_every_default_is_a_value_that_the_option_can_have(job: str) -> None:
    options = config.JOBS[job]
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(options)
        if not field.metadata["required"] and field.default not in ("", ())
    }
    made = config.make(options, {**required(options), **defaults}, "the defaults")
    assert made == options(**required(options))


def test_the_file_of_all_options_is_up_to_date() -> None:
    assert (ROOT / "conf" / "seedlings.toml").read_text(encoding="utf-8") == config.as_toml(), (
        "run: python -m seedlings_spark.config > conf/seedlings.toml"
    )


def test_the_file_of_all_options_says_what_would_be_without_it() -> None:
    file = str(ROOT / "conf" / "seedlings.toml")
    for job, options in config.JOBS.items():
        given_file = config.resolve(options, job, required(options), file)
        assert given_file == config.resolve(options, job, required(options))
        for field in dataclasses.fields(options):
            assert field.metadata["required"] or field.name in config.read_toml(file)[job]


def test_no_line_of_the_file_of_all_options_is_too_long_to_read() -> None:
    assert max(map(len, config.as_toml().splitlines())) <= 110


@pytest.mark.parametrize("name", ["quickstart.toml", "quickstart-fine-tuned.toml"])
def test_the_quickstart_files_have_only_known_keys(name: str) -> None:
    tables = config.read_toml(str(ROOT / "conf" / name))
    for job, table in tables.items():
        config.make(config.JOBS[job], {**required(config.JOBS[job]), **table}, "conf/quickstart.toml")


def test_options_become_plain_values_for_a_manifest() -> None:
    plain = config.plain(train({"augment": ["zoom"]}))
    assert plain["augment"] == ["zoom"] and plain["promote"] == "always" and plain["corpus"] == "c"


def test_some_options_can_be_picked_by_name() -> None:
    assert config.chosen(train(), "epochs", "loss") == {
        "epochs": 30,
        "loss": "sparse_categorical_crossentropy",
    }


# --- for all values


@given(
    st.integers(1, 10**12),
    st.floats(1e-9, 1e9),
    texts(without=CONTROLS, min_size=1),
)
def test_values_survive_their_way_through_a_file(epochs: int, rate: float, name: str) -> None:
    text = "\n".join(
        f"{key} = {toml_value(value)}"
        for key, value in {"epochs": epochs, "learning_rate": rate, "name": name}.items()
    )
    made = config.make(
        config.TrainOptions, {**required(config.TrainOptions), **tomllib.loads(text)}, "a file"
    )
    assert (made.epochs, made.learning_rate, made.name) == (epochs, rate, name)


@given(
    st.sampled_from(sorted(config.JOBS)),
    st.data(),
    st.one_of(texts(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(texts())),
)
def test_any_value_is_taken_or_refused_and_never_more(job: str, data: st.DataObject, value: Any) -> None:
    options = config.JOBS[job]
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(options)]))
    for source in (config.COMMAND_LINE, "a file"):
        try:
            config.make(options, {**required(options), name: value}, source)
        except OptionError as error:
            assert error.found and error.expected and error.remedy


# --- what was meant


@pytest.mark.parametrize(
    ("job", "given", "meant"),
    [
        ("train", "--lr", "--learning-rate"),
        ("train", "--learningRate", "--learning-rate"),
        ("train", "-learning_rate", "--learning-rate"),
        ("train", "--learn", "--learning-rate"),
        ("train", "--bs", "--batch-size"),
        ("train", "--nb_epoch", "--epochs"),
        ("train", "--maxIter", "--epochs"),
        ("train", "--workers", "--num-workers"),
        ("train", "--model", "--network"),
        ("train", "--epohcs", "--epochs"),
        ("train", "--data", "--corpus"),
        ("train", "--random_state", "--seed"),
        ("prepare", "--size", "--image-size"),
        ("prepare", "--validation_split", "--split-shares"),
        ("score", "--input", "--images"),
        ("score", "--out", "--output"),
        ("score", "--version", "--model-version"),
        ("evaluate", "--output", "--report"),
        ("train", "--qq", ""),
        ("train", "-e", ""),
    ],
)
def test_an_option_is_known_by_what_others_call_it(job: str, given: str, meant: str) -> None:
    flags = [config.flag_of(field.name) for field in dataclasses.fields(config.JOBS[job])]
    assert config.suggestion(given, flags) == meant


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        ({"mode": "async"}, "asynchronous"),
        ({"mode": "sync"}, "synchronous"),
        ({"mode": "Hogwild"}, "hogwild"),
        ({"precision": "bf16"}, "mixed_bfloat16"),
        ({"augment": ["rotation"]}, "rotate"),
    ],
)
def test_a_choice_is_known_by_what_others_call_it(flags: dict[str, Any], meant: str) -> None:
    assert refused("train", flags).remedy == f"Did you mean {meant}?"


def test_every_other_name_is_one_of_an_option_that_there_is() -> None:
    names = {field.name for options in config.JOBS.values() for field in dataclasses.fields(options)}
    assert set(ALSO) <= names | {"debug", "log", "config"}
