# SPDX-License-Identifier: Apache-2.0
"""Charts: their axes' numbers, their points and what they say to readers who do not see them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from fastpose.engine.charts import MOST_MARKED, Series, decades, labels, legend, line_chart, said, short, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.31, 0.49, [0.3, 0.35, 0.4, 0.45, 0.5]), (-3, 3, [-4, -2, 0, 2, 4])],
)
def test_ticks_are_round_and_around_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_one_value_is_in_the_middle_of_its_axis() -> None:
    assert ticks(1, 1, whole=True) == [0, 1, 2]
    found = ticks(0.25, 0.25)
    assert found[0] < 0.25 < found[-1]
    assert ticks(0, 0)[0] < 0 < ticks(0, 0)[-1]
    assert ticks(100, 100, limits=(0, 100))[-1] <= 100


def test_whole_numbers_have_whole_ticks_and_limits_are_kept() -> None:
    assert ticks(1, 2, whole=True) == [1, 2]
    assert ticks(1, 140, whole=True) == [0, 50, 100, 150]
    assert ticks(2, 99, limits=(0, 100)) == [0, 20, 40, 60, 80, 100]


def test_a_logarithmic_axis_has_tens_and_between_few_of_them_twos_and_fives() -> None:
    assert decades(0.003, 0.2) == pytest.approx([0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
    assert decades(1e-6, 1) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])


def test_numbers_are_short() -> None:
    numbers = {0.00025: "2.5e−4", 0: "0", 1e-3: "0.001", 100_000: "1e5", 0.125: "0.125", -2: "−2", 20_000: "20000"}
    assert {number: short(number) for number in numbers} == numbers


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001449, 0.001463, ["0.001445", "0.00145", "0.001455", "0.00146", "0.001465"]),  # a loss that hardly falls
        (90.121, 90.124, ["90.121", "90.122", "90.123", "90.124"]),
        (1.2e-7, 1.21e-7, ["1.2e−7", "1.202e−7", "1.204e−7", "1.206e−7", "1.208e−7", "1.21e−7"]),
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (1e5, 1.0004e5, ["1e5", "1.0001e5", "1.0002e5", "1.0003e5", "1.0004e5"]),
    ],
)
def test_no_two_numbers_of_an_axis_look_the_same(low: float, high: float, expected: list[str]) -> None:
    assert labels(ticks(low, high)) == expected


def test_a_chart_is_xml_with_a_title_a_description_and_a_mark_for_each_point() -> None:
    chart = line_chart("a", "<Loss>", "it & falls", [Series("x", [1, 2, 3], [0.5, None, math.nan])], "epoch", "loss")
    root = ElementTree.fromstring(chart)
    assert (root[0].tag, root[0].text, root[1].tag, root[1].text) == ("title", "<Loss>", "desc", "it & falls")
    assert len(root.findall("circle")) == 1
    assert not [one for one in root.findall("path") if one.get("class", "").startswith("line")]


def test_a_line_has_gaps_where_numbers_are_missing_and_no_more_marks_than_can_be_told_apart() -> None:
    xs = list(range(100))
    ys = [None if x == 50 else float(x) for x in xs]
    root = ElementTree.fromstring(line_chart("a", "t", "d", [Series("x", xs, ys)], "x", "y", whole=True))
    lines = [one.get("d", "") for one in root.findall("path") if one.get("class") == "line s0"]
    assert [line.count("L") for line in lines] == [49, 48]
    assert 10 <= len(root.findall("circle")) <= MOST_MARKED


def test_without_a_point_there_is_no_chart() -> None:
    assert line_chart("a", "t", "d", [Series("x", [1], [None])], "x", "y") == ""
    assert said([Series("x", [1], [None])], "epoch") == ""


def test_lines_are_described_in_words() -> None:
    two = [Series("a", [1, 2, 3], [3.0, 1.0, 2.0]), Series("b", [2], [5.0])]
    text = "a: from 3 at epoch 1 to 2 at epoch 3, between 1 and 3; b: from 5 at epoch 2 to 5 at epoch 2"
    assert said(two, "epoch") == text


def test_a_legend_is_for_several_lines_and_escapes_their_names() -> None:
    assert legend(["one"]) == ""
    assert "&lt;b&gt;" in legend(["<b>", "c"])
