"""Plots are inline SVG that takes the page's colours, and show what the numbers say."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from lm.report import plots
from lm.report.plots import Series, line_plot, smooth


def plot(*series, **options):
    return line_plot(series, name="test", description="what it shows", **options)


def line_points(svg, color=0):
    """Pixel coordinates of the line in a series colour."""
    path = re.search(rf'<path d="([^"]*)"[^>]*stroke: var\(--series-{color},', svg)[1]
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path)]


def test_an_svg_is_well_formed_and_described_for_those_who_do_not_see_it():
    svg = line_plot([Series([1, 2], [3.0, 4.0])], name="x", description='loss <b> & "more"')
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'loss <b> & "more"'
    assert root.get("viewBox")
    assert root.get("width") is None  # the page scales it


def test_all_colours_come_from_the_page():
    svg = plot(Series([1, 2], [3.0, 4.0], "a"), Series([1, 2], [1.0, 2.0], "b", color=1, points=True))
    assert "var(--series-0, " in svg
    assert "var(--series-1, " in svg
    assert "currentColor" in svg
    own = set(re.findall(r"#[0-9a-f]{6}", svg)) - set(plots.SERIES_COLORS)
    assert not own
    assert "fill: #ffffff" not in svg


def test_the_same_numbers_give_the_same_bytes_and_no_date():
    series = Series(range(50), [math.sin(step) for step in range(50)], "a")
    first, second = plot(series), plot(series)
    assert first == second
    assert "<metadata" not in first
    assert "<!DOCTYPE" not in first


def test_ids_of_two_plots_on_one_page_do_not_collide():
    one = line_plot([Series([1, 2], [3.0, 4.0], points=True)], name="one", description="")
    two = line_plot([Series([1, 2], [3.0, 4.0], points=True)], name="two", description="")
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((one, two), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", svg)) <= {
            pair for name in own for pair in ((name, ""), ("", name))
        }


def test_larger_values_stand_higher_and_later_steps_further_right():
    (x0, y0), (x1, y1) = line_points(plot(Series([0, 10], [1.0, 2.0])))
    assert x1 > x0
    assert y1 < y0  # SVG's y grows downwards


def test_a_value_that_is_not_finite_leaves_a_gap():
    svg = plot(Series(range(5), [1.0, 2.0, math.nan, 2.0, 1.0]))
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--series-0,', svg)[1]
    assert path.count("M") == 2
    assert "nan" not in path
    assert plot(Series(range(3), [1.0, None, math.inf])) is not None


@pytest.mark.parametrize("values", [[], [math.nan, None]])
def test_nothing_finite_gives_no_plot(values):
    assert plot(Series(range(len(values)), values)) is None


def test_a_single_value_is_visible_as_a_mark():
    assert "<use" in re.sub(r'<g class="tick">.*?</g>', "", plot(Series([1], [2.0])))


def test_thinning_keeps_a_spike_and_bounds_the_size():
    y = np.ones(100_000)
    y[54_321] = 7.0
    x, thin = plots._thin(np.arange(100_000), y)
    assert len(x) <= plots.MAX_POINTS + 2
    assert thin[list(x).index(54_321)] == 7.0
    assert len(plot(Series(np.arange(100_000), np.random.default_rng(0).normal(size=100_000)))) < 60_000


def test_thinning_keeps_a_gap():
    y = np.ones(10_000)
    y[5_000:5_100] = np.nan
    assert np.isnan(plots._thin(np.arange(10_000), y)[1]).any()


def test_the_first_steep_steps_do_not_flatten_the_rest():
    loss = [12.0, 10.0, 8.0, *np.linspace(3.1, 3.0, 500)]
    low, high = plots._y_limits([np.array(loss)], from_zero=False)
    assert low < 3.0
    assert high < 4.0


def test_an_axis_uses_one_unit():
    tick = plots._tick_text(24_000)
    assert [tick(value, 0) for value in (0, 6_000, 24_000)] == ["0", "6k", "24k"]
    assert plots._tick_text(0.003)(0.0005, 0) == "0.0005"


def test_smoothing_keeps_a_straight_line_its_length_and_its_gaps():
    line = np.linspace(9, 1, 400)
    smoothed = smooth(line)
    np.testing.assert_allclose(smoothed[:-20], line[:-20], atol=1e-12)
    gap = line.copy()
    gap[100:110] = np.nan
    assert np.isnan(smooth(gap)).sum() == 10
    assert np.isfinite(smooth(gap)[99])


def test_smoothing_lowers_noise():
    noise = np.random.default_rng(0).normal(size=2000)
    assert smooth(noise).std() < 0.3 * noise.std()
    assert len(smooth([])) == 0
