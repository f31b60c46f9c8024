"""Search spaces: what a file may say, and what is refused by its line."""

from pathlib import Path

import pytest

from seedlings_spark import config
from seedlings_spark.errors import OptionError
from seedlings_spark.workflow import search, space
from tests import docs


def read(tmp_path: Path, text: str) -> space.Space:
    file = tmp_path / "space.toml"
    file.write_text(text, encoding="utf-8")
    return space.read(str(file))


def test_ranges_and_lists_become_options_of_train(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "[train]\nepochs = 3\n[space]\nlearning_rate = { low = 1e-4, high = 1, log = true }\n"
        'batch_size = { low = 16, high = 64, step = 16 }\naugment = [["flip", "turn"], "none"]\n',
    )
    assert found.fixed == {"epochs": 3}
    assert found.dimensions == {
        "learning_rate": space.Range(0.0001, 1.0, log=True),
        "batch_size": space.Range(16, 64, step=16),
        "augment": (("flip", "turn"), ("none",)),
    }
    assert found.values({"learning_rate": 0.5, "batch_size": 32, "augment": 1}) == {
        "learning_rate": 0.5,
        "batch_size": 32,
        "augment": ("none",),
    }
    rate, size, augment = found.distributions().values()
    assert (rate.low, rate.high, rate.log) == (0.0001, 1.0, True)
    assert (size.low, size.high, size.step) == (16, 64, 16)
    assert augment.choices == (0, 1)


def test_what_is_common_may_go_with_what_is_searched(tmp_path: Path) -> None:
    """And not with its defaults: a rule is for no synchronous run, auto takes shards."""
    places = {"corpus": "corpus", "store": "store", "space": "space.toml"}
    text = '[train]\nrule = "adag"\n[space]\nmode = ["asynchronous", "hogwild"]\n'
    assert search._base(config.TuneOptions(**places), read(tmp_path, text)).mode == "asynchronous"
    text = '[train]\nnum_workers = "auto"\n[space]\nshards = [4, 8]\n'
    assert search._base(config.TuneOptions(**places), read(tmp_path, text)).shards == 4
    text = '[train]\nrule = "adag"\n[space]\nbatch_size = [8, 16]\n'
    with pytest.raises(OptionError, match="--rule adag"):
        search._base(config.TuneOptions(**places), read(tmp_path, text))


def test_the_documented_file_is_a_space(tmp_path: Path) -> None:
    text = docs.command("docs/search.md", "Searching for good options", {}, "toml")
    found = read(tmp_path, text)
    assert list(found.fixed) == ["epochs", "num_workers"]
    assert list(found.dimensions) == ["network", "learning_rate", "batch_size", "augment"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[space]\n\nlearning_rat = [0.1]", ("line 3", "learning_rat", "learning_rate")),
        ("[space]\nbatch_size = [0]", ("line 2", "at least 1")),
        ("[space]\nbatch_size = []", ("line 2", "at least one")),
        ("[space]\nbatch_size = [8, 8]", ("line 2", "different values")),
        ("[space]\nlearning_rate = { low = 0.1, high = 0.1 }", ("line 2", "low below high")),
        (
            "[space]\nlearning_rate = { low = 0.1, high = 1, log = true, step = 0.1 }",
            ("line 2", "without a step"),
        ),
        ("[space]\nbatch_size = { low = 8, high = 64, step = 0.5 }", ("line 2", "a whole number")),
        ("[space]\nlearning_rate = { low = 0.1 }", ("line 2", "{ low = 1e-4")),
        ("[space]\nnetwork = { low = 1, high = 2 }", ("line 2", "network")),
        ('[space]\nschedule = ["cosine", "cosin"]', ("line 2", "cosin", "one of")),
        ('[space]\nstore = ["a"]', ("line 2", "store", "tune itself")),
        ("[space]\ncalibrate = [true, false]", ("line 2", "calibrate", "into [train]")),
        ("[space]\nquantize = [true, false]", ("line 2", "quantize", "into [train]")),
        ("[space]\nshow_augmentation = [true, false]", ("line 2", "show_augmentation", "into [train]")),
        ("[space]\nema = [0.99, 0.999]", ("line 2", "ema", "give --ema to train")),
        ('[train]\nkeep = "last"\nema = 0.99', ("line 3", "ema", "give --ema to train")),
        ('[space]\nnum_workers = ["1-2", "2-4"]', ("line 2", "'1-2'", "min_workers in a line")),
        ('[space]\nnum_workers = ["auto", 2]\nshards = [4]', ("line 2", "'auto'", "into [train]")),
        ('[train]\ncorpus = "c"', ("line 2", "corpus", "tune itself")),
        ("[train]\nepochs = 3\n[space]\nepochs = [3]", ("epochs in both tables",)),
        ('[space]\nfine_tune = ["all", "staged"]', ("line 2", "staged", "side by side")),
        ("[sapce]\nepochs = [3]", ("sapce", "[train]", "[space]")),
        ("epochs = ", ("space.toml", "TOML")),
    ],
)
def test_what_cannot_be_is_refused_by_its_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(OptionError) as refused:
        read(tmp_path, text)
    for word in words:
        assert word in str(refused.value)


def test_the_largest_of_what_is_searched(tmp_path: Path) -> None:
    found = read(tmp_path, "[space]\nnum_workers = [1, 4, 2]\nepochs = { low = 3, high = 9 }\n")
    assert found.largest("num_workers", "min_workers", "epochs") == {"num_workers": 4, "epochs": 9}
