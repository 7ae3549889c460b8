# SPDX-License-Identifier: Apache-2.0
import sys
import time

import pytest

from fastpose.progress import CountedProgress, ProgressLine, duration
from tests.helpers.terminal import Terminal


class Clock:
    """The time, in seconds, that a test sets."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0m00s"), (59.4, "0m59s"), (75, "1m15s"), (3599.6, "1h00m"), (7380, "2h03m")]
)
def test_durations_are_minutes_and_seconds_or_hours_and_minutes(seconds, text):
    assert duration(seconds) == text


def test_a_log_gets_a_line_every_ten_seconds_and_the_last(clock, capsys):
    shown = CountedProgress("packing train", "persons", 200)
    for clock.now, done in ((1, 10), (9, 90), (10, 100), (11, 110), (20, 160), (21, 170), (25, 200)):
        shown.show(done)
    shown.end()
    assert capsys.readouterr().err.splitlines() == [
        "packing train  100/200 persons  10.0 persons/s  0m10s left",
        "packing train  160/200 persons  8.0 persons/s  0m05s left",
        "packing train  200/200 persons  8.0 persons/s  0m00s left",
    ]


def test_the_last_line_is_left_out_of_a_log_if_it_is_not_to_stay(clock, capsys):
    shown = CountedProgress("evaluation", "persons", 20, stays=False)
    for clock.now, done in ((12, 10), (13, 20)):
        shown.show(done)
    assert capsys.readouterr().err == "evaluation  10/20 persons  0.8 persons/s  0m12s left\n"


@pytest.mark.parametrize("stays", [True, False])
def test_on_a_terminal_states_replace_one_another_on_one_line(clock, monkeypatch, stays):
    out = Terminal.on(monkeypatch)
    shown = CountedProgress("decoding", "images", 8, stays=stays)
    for clock.now, done in ((1, 2), (2, 4), (4, 8)):
        shown.show(done)
    assert out.getvalue().endswith("\n") == stays
    shown.end()
    shown.end()
    assert out.getvalue().split("\r\x1b[2K") == [
        "",
        "decoding  2/8 images  2.0 images/s  0m03s left",
        "decoding  4/8 images  2.0 images/s  0m02s left",
        "decoding  8/8 images  2.0 images/s  0m00s left\n",
    ]


def test_a_terminal_is_not_written_to_more_often_than_ten_times_a_second(clock, monkeypatch):
    out = Terminal()
    monkeypatch.setattr("sys.stderr", out)
    line = ProgressLine()
    for state in range(20):
        clock.now = state / 16
        line.renew(str(state))
    assert out.getvalue().split("\r\x1b[2K")[1:] == [str(state) for state in range(0, 20, 2)]


def test_a_line_that_stays_is_printed_whenever_it_comes_and_closes_the_open_one(clock, monkeypatch):
    out = Terminal.on(monkeypatch)
    line = ProgressLine()
    line.renew("half")
    assert line.open
    line.print("done")
    assert not line.open
    line.end()
    assert out.getvalue() == "\r\x1b[2Khalf\r\x1b[2Kdone\n"


def test_the_time_left_leaves_out_what_was_there_already(clock, capsys):
    shown = CountedProgress("packing train", "persons", 200)
    for clock.now, done, found in ((50, 100, 100), (60, 110, 100), (70, 160, 140), (80, 170, 140)):
        shown.show(done, found)
    # 10 persons in 10 s; then 20 in 20 s, of which 10 s went into persons that were there; then 30 in 20 s.
    assert capsys.readouterr().err.splitlines() == [
        "packing train  100/200 persons",
        "packing train  110/200 persons  1.0 persons/s  1m30s left",
        "packing train  160/200 persons  2.0 persons/s  0m20s left",
        "packing train  170/200 persons  1.5 persons/s  0m20s left",
    ]


def test_without_standard_error_nothing_is_shown_and_nothing_fails(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as Python has it where it was closed before the start
    line = ProgressLine()
    line.print("done")
    assert not line.terminal
