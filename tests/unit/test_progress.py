"""What a person sees while it trains."""

import io
import logging

import pytest

from seedlings_spark.training import progress
from seedlings_spark.training.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.0)
    terminal = Terminal()
    train(ProgressLine(2, terminal))
    live = terminal.getvalue().split("\r\x1b[K")
    assert any(text.startswith("epoch 1/2  100/100 images") and "loss 0.5000" in text for text in live)
    assert terminal.getvalue().count("\n") == 2
    assert live[-1].startswith("epoch 2/2  100 images  50 images/s  loss 0.2500  val_loss 0.0001  0 s left")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["a file", "a dumb terminal"])
def test_elsewhere_each_epoch_is_a_line_of_the_log(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "dumb" if stream.isatty() else "xterm")
    monkeypatch.setattr(logging.getLogger("seedlings_spark"), "propagate", True)
    with caplog.at_level(logging.INFO, "seedlings_spark"):
        train(ProgressLine(2, stream))
    assert [message.split("  ")[0] for message in caplog.messages] == ["epoch 1/2", "epoch 2/2"]
    assert stream.getvalue() == ""
