"""What a person sees of a job at work."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from seedlings_spark import display, progress
from seedlings_spark.training.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logging.getLogger("seedlings_spark"), "propagate", True)
    with caplog.at_level(logging.INFO, "seedlings_spark"):
        yield caplog


def train(line: ProgressLine) -> None:
    """Two epochs of 100 images, in rounds of 50."""
    for epoch in range(2):
        for images in (50, 100):
            line.step(epoch, images, 100, lambda: {"loss": 0.5})
        line.epoch(epoch, 2.0, 100, {"loss": 0.25, "val_loss": 0.0001})


def test_a_terminal_gets_a_live_line_and_one_that_stays_for_each_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    terminal = Terminal()
    train(ProgressLine(2, terminal))
    live = terminal.getvalue().split("\r\x1b[K")
    assert any(text.startswith("epoch 1/2  100/100 images") and "loss 0.5000" in text for text in live)
    assert terminal.getvalue().count("\n") == 2
    assert live[-1].startswith("epoch 2/2  100 images  50 images/s  loss 0.2500  val_loss 0.0001")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["a file", "a dumb terminal"])
def test_elsewhere_each_epoch_is_a_line_of_the_log(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "dumb" if stream.isatty() else "xterm")
    train(ProgressLine(2, stream))
    assert [message.split("  ")[0] for message in log.messages] == ["epoch 1/2", "epoch 2/2"]
    assert stream.getvalue() == ""


def test_a_long_epoch_is_a_line_of_the_log_now_and_then(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    line = ProgressLine(1, io.StringIO())
    for images in range(1, 101):
        now += 1.0
        line.step(0, images, 100, lambda: {"loss": 0.5})
    assert [message.split("  ")[1] for message in log.messages] == [
        "30/100 images",
        "60/100 images",
        "90/100 images",
    ]
    assert log.messages[1].split("  ")[3] == "40 s left"


@pytest.mark.parametrize(
    ("text", "columns", "kept"),
    [
        ("plain", 5, "plain"),
        ("plain", 4, "plai"),
        ("\u9ea6\u9ea6\u9ea6", 5, "\u9ea6\u9ea6"),  # each takes two columns
        ("e\u0301e\u0301e", 2, "e\u0301e\u0301"),  # a combining accent takes none
        ("\N{SEEDLING}a", 2, "\N{SEEDLING}"),
        ("a\x1b[2Jb\nc", 80, "a[2Jbc"),
        ("anything", 0, ""),
    ],
)
def test_a_line_is_cut_by_the_columns_that_it_takes_up(text: str, columns: int, kept: str) -> None:
    assert display.cut(text, columns) == kept


def test_the_live_line_has_the_width_that_the_terminal_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    own, other = pty.openpty()
    try:
        with os.fdopen(other, "w") as stream:
            line = progress.Line(stream, logging.getLogger("seedlings_spark"), 0.0)
            for columns in (80, 20):
                fcntl.ioctl(stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
                line.show("x" * 500)
                assert os.read(own, 4096).decode() == "\r\x1b[K" + "x" * (columns - 1)
    finally:
        os.close(own)


def test_the_start_of_workers_is_not_taken_for_slow_work() -> None:
    pace = progress.Pace(0.0)
    pace.reached(0, 50.0)
    assert pace.left(1000, 50.0) is None
    # After a minute of start both workers end their first task, and from then on one each in 10 s.
    for now, done in ((70.0, 100), (70.5, 200), (80.0, 300), (80.4, 400)):
        pace.reached(done, now)
        if done <= 200:
            assert pace.left(1000, now) is None
    for now, done in ((90.0, 500), (90.5, 600)):
        pace.reached(done, now)
    left = pace.left(1000, 90.5)
    assert left is not None and 15 < left < 25  # 20 s; from the start of all it would be 60
    assert pace.left(1000, 95.5) == pytest.approx(left - 5)


def test_silence_is_ended_by_what_spark_is_at(log: pytest.LogCaptureFixture) -> None:
    stage = SimpleNamespace(stageId=3, numTasks=40, numCompletedTasks=12, numActiveTasks=2)
    tracker = SimpleNamespace(getActiveStageIds=lambda: [3, 4], getStageInfo={3: stage}.get)
    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(statusTracker=lambda: tracker))
    with progress.Heartbeat(spark, every=0.01):
        while not log.messages:
            time.sleep(0.01)
    assert re.fullmatch(
        r"at work for \d+ s: stage 3 of Spark, 12 of 40 tasks done, 2 at work", log.messages[0]
    )


def test_what_is_said_by_others_is_a_sign_of_life(log: pytest.LogCaptureFixture) -> None:
    with progress.Heartbeat(SimpleNamespace(), every=3600.0):
        before = progress._signs.last
        logging.getLogger("seedlings_spark.corpus.decoding").info("something")
        assert progress._signs.last > before
