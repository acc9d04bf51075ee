"""A sweep's charts show what the numbers say, in the page's colours."""

import re
from xml.etree import ElementTree

import numpy as np

from lm.report.charts import Interval, heat_map, interval_chart
from lm.report.plots import Series, line_plot

BETTER, WORSE = "var(--series-2,", "var(--series-5,"


def chart(*rows, **options):
    return interval_chart(rows, name="test", description="what it shows", x_label="difference", **options)


def texts(svg):
    return [element.text.strip() for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_verdicts_have_their_colours_and_what_is_not_seen_has_none():
    rows = [
        Interval("a", -1.0, [-1.1, -0.9], -1.5, -0.5, "better", "-1 % better"),
        Interval("b", 1.0, [0.9, 1.1], 0.5, 1.5, "worse", "+1 % worse"),
        Interval("c", 0.1, [0.0, 0.2], -0.4, 0.6, remark="+0.1 %"),
    ]
    svg = chart(*rows)
    assert BETTER in svg and WORSE in svg
    assert {"a", "b", "c", "-1 % better", "+0.1 %"} <= set(texts(svg))
    assert BETTER not in chart(rows[2]) and WORSE not in chart(rows[2])
    assert set(texts(chart(*rows, labels_above=True, width=420))) >= {"a", "b", "c"}


def test_rows_stand_from_top_to_bottom_and_smaller_is_further_left():
    svg = chart(Interval("a", -1.0, [], -1.5, -0.5, "better"), Interval("b", 1.0, [], 0.5, 1.5, "worse"))

    def line(color):
        path = re.search(
            rf'<path d="M (-?[\d.]+) (-?[\d.]+)\s+L (-?[\d.]+) (-?[\d.]+)\s*"[^>]*stroke: {re.escape(color)}', svg
        )
        return [float(number) for number in path.groups()]

    (left, top, right, _), (other, below, _, _) = line(BETTER), line(WORSE)
    assert left < right < other and top < below


def test_a_row_far_away_does_not_squeeze_the_others():
    rows = [Interval(f"v{n}", 0.01 * n, [], 0.01 * n - 0.01, 0.01 * n + 0.01) for n in range(1, 6)]
    near = chart(*rows)
    far = chart(*rows, Interval("diverged", 50.0, [], 10.0, 90.0, "worse", "+3000 % worse"))
    ticks = [set(re.findall(r">\s*(-?0\.\d+)\s*<", svg)) for svg in (near, far)]
    assert ticks[0] & ticks[1]
    assert "+3000 % worse" in texts(far)


def test_one_run_without_an_interval_and_no_rows():
    assert chart() is None
    assert chart(Interval("a", 0.0, [0.0])) is not None
    assert chart(Interval("a", 0.5, [0.5])) is not None


def test_the_lowest_cell_is_framed_strongest_and_an_absent_one_is_empty():
    values = np.array([[3.0, 2.0, np.nan], [1.0, 2.5, 9.0]])
    svg = heat_map(values, ["a", "b"], ["x", "y", "z"], name="t", description="", x_label="c", y_label="r", form=".2f")
    shown = texts(svg)
    assert {"3.00", "1.00", "9.00", "-", "a", "z"} <= set(shown)
    assert len(re.findall(r"fill: none; stroke: currentColor", svg)) == 1
    strengths = [
        float(opacity) for opacity in re.findall(r"fill: var\(--series-0,[^;]*; (?:fill-)?opacity: ([\d.]+)", svg)
    ]
    assert len(strengths) == 5 and max(strengths) == strengths[2]
    assert heat_map(np.full((2, 2), np.nan), "ab", "xy", name="t", description="", x_label="", y_label="") is None


def test_a_band_is_drawn_around_its_line_and_lies_within_the_plot():
    svg = line_plot([Series([0, 1], [1.0, 1.0], low=[0.0, 0.0], high=[5.0, 5.0])], name="t", description="")
    line = re.search(r'<path d="M [\d.]+ ([\d.]+)[^"]*"[^>]*stroke: var\(--series-0', svg)
    band, offset = re.search(r'<path id="[^"]*" d="([^"]*)"', svg)[1], 250  # its place is added where it is used
    assert re.search(r'<use [^>]*y="250" style="fill: var\(--series-0', svg)
    heights = [offset + float(y) for y in re.findall(r"[ML] -?[\d.]+ (-?[\d.]+)", band)]
    assert min(heights) > 0
    assert min(heights) < float(line[1]) < max(heights)


def test_swept_values_stand_evenly_on_a_logarithmic_axis_and_carry_the_ticks():
    rates = [0.001, 0.01, 0.1]
    svg = line_plot([Series(rates, [3.0, 2.0, 4.0])], name="t", description="", log_x=True, x_ticks=rates)
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--series-0,', svg)[1]
    x = [float(x) for x in re.findall(r"[ML] (-?[\d.]+) ", path)]
    assert abs((x[1] - x[0]) - (x[2] - x[1])) < 0.01
    assert {"0.001", "0.01", "0.1"} <= set(texts(svg))
    many = [0.001 * 1.1**n for n in range(60)]
    crowded = line_plot([Series(many, many)], name="t", description="", log_x=True, x_ticks=many)
    assert len(texts(crowded)) < 20


def test_an_underscore_or_a_dollar_in_a_name_is_drawn_as_it_is():
    svg = line_plot([Series([0, 1], [1.0, 2.0], label="_a $x$")], name="t", description="")
    assert any(text.endswith("_a $x$") for text in texts(svg))
