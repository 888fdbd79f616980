"""A bar on a terminal, lines elsewhere; the items pass either way."""

from __future__ import annotations

import logging
import sys

import pytest

from utils import progress as module
from utils.progress import progress


def test_lines_tell_how_far_and_how_long(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 1000, 6))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(seconds)))
    with caplog.at_level(logging.INFO):
        assert list(progress([1, 2, 3, 4], description="epoch 1", state=lambda: "loss 2")) == [1, 2, 3, 4]
    # 6 s an item, a line every 10 s: after the second; the end has lines of its own.
    assert caplog.messages == ["epoch 1 2/4, 12 s left, loss 2"]


def test_quick_work_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(progress([], description="x")) == []
        assert list(progress([1, 2], description="x")) == [1, 2]
    assert caplog.messages == []


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_STATES", 0.0)
    assert list(progress([1, 2], description="epoch 1", state=lambda: "loss 2")) == [1, 2]
    assert "epoch 1" in capsys.readouterr().err
