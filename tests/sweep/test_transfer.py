"""The best learning rate over widths: which it is, by how much it moves, and what a sweep's folder says."""

import json
import math

import pytest

from lm.errors import UsageError
from lm.report.coord_check import draw_transfer
from lm.report.sweep import sweep_page
from lm.report.sweep_words import judge_sweep
from lm.sweep.results import read_sweep
from lm.sweep.transfer import Transfer, transfers_of

RATES = (0.001, 0.002, 0.004, 0.008)


def losses(best: dict[int, float]) -> list[tuple[int, float, float]]:
    """A parabola in log rate per width, with its vertex at the width's best rate."""
    return [(width, rate, 2 + math.log2(rate / at) ** 2) for width, at in best.items() for rate in RATES]


def test_the_best_rate_of_each_width_and_the_grid_steps_between_them():
    transfer = Transfer.of_runs("standard", losses({64: 0.004, 128: 0.004, 256: 0.002}))
    assert [transfer.best(width) for width in transfer.widths] == [0.004, 0.004, 0.002]
    assert transfer.moved == 1 and not transfer.at_the_edge
    assert transfer.summary == "standard: the best rate moves by 1 grid step from width 64 to 256"
    assert transfer.penalty == pytest.approx(1.0)


def test_the_vertex_is_between_the_grids_rates():
    transfer = Transfer.of_runs("muP", losses({64: 0.0026, 128: 0.0035}))
    assert transfer.vertex(64) == pytest.approx(0.0026)
    assert transfer.vertex(128) == pytest.approx(0.0035)


def test_a_best_rate_at_the_grids_edge_is_said_to_move_at_least_so_far():
    transfer = Transfer.of_runs("standard", losses({64: 0.004, 256: 0.0001}))
    assert transfer.at_the_edge == [256]
    assert "at least 2 grid steps" in transfer.summary
    assert transfer.vertex(256) == pytest.approx(0.001)


def test_a_rate_at_which_one_seed_diverged_is_not_the_best():
    runs = losses({64: 0.002, 128: 0.002}) + losses({64: 0.002, 128: 0.002})
    runs.append((128, 0.002, None))
    transfer = Transfer.of_runs("muP", runs)
    assert transfer.losses[128][0.002] is None
    assert transfer.best(64) == 0.002 and transfer.best(128) in (0.001, 0.004)
    assert transfer.penalty == math.inf
    assert "diverged" in transfer.table()
    pending = Transfer.of_runs("muP", [run for run in runs if run[:2] != (128, 0.002)])
    assert math.isnan(pending.penalty)


def test_one_width_has_no_transfer():
    with pytest.raises(UsageError, match="1 widths"):
        Transfer.of_runs("muP", losses({64: 0.002}))
    with pytest.raises(UsageError, match="no run of width 128"):
        Transfer.of_runs("muP", [*losses({64: 0.002}), (128, 0.002, math.nan)])


def write_sweep(folder, runs, overrides, base_width=64) -> None:
    sweep = {"name": "widths", "metric": "bits_per_byte", "match": "tokens", "baseline": "a", "seeds": [0], "base": {}}
    sweep |= {"variants": [{"name": "a", "overrides": overrides}]}
    sweep |= {"runs": [{"id": f"{number:012x}", "variant": "a", "seed": 0} for number in range(len(runs))]}
    (folder / "results").mkdir()
    (folder / "sweep.json").write_text(json.dumps(sweep))
    for number, (width, rate, loss) in enumerate(runs):
        model, optimizer = {"d_model": width, "mup_base_width": base_width}, {"learning_rate": rate}
        row = {"config": {"model": model, "optimizer": optimizer}, "status": "done", "final": {"bits_per_byte": loss}}
        if loss is None:
            row |= {"status": "failed", "final": None}
        (folder / "results" / f"{number:012x}.json").write_text(json.dumps(row))


def test_a_sweeps_folder_is_read(tmp_path):
    overrides = {"model.d_model": 64, "optimizer.learning_rate": 0.001}
    write_sweep(tmp_path, [*losses({64: 0.004, 128: 0.002}), (64, 0.016, None)], overrides)
    (transfer,) = transfers_of(read_sweep(str(tmp_path)))
    assert (transfer.label, transfer.metric, transfer.moved) == ("muP", "bits_per_byte", 1)
    assert transfer.losses[64][0.016] is None


def test_standard_parametrizations_transfer_is_one_of_its_own(tmp_path):
    overrides = {"model.d_model": 64, "optimizer.learning_rate": 0.001}
    write_sweep(tmp_path, losses({64: 0.004, 128: 0.001}), overrides, base_width=None)
    (transfer,) = transfers_of(read_sweep(str(tmp_path)))
    assert (transfer.label, transfer.moved) == ("standard", 2)


@pytest.mark.parametrize("runs", [[], losses({64: 0.002})])
def test_a_sweep_over_something_else_has_no_transfer(tmp_path, runs):
    write_sweep(tmp_path, runs, {"optimizer.learning_rate": 0.001})
    assert transfers_of(read_sweep(str(tmp_path))) == []


def page_of(folder) -> str:
    sweep = read_sweep(str(folder))
    return sweep_page(sweep, judge_sweep(sweep))


def test_the_report_shows_the_transfer(tmp_path):
    overrides = {"model.d_model": 64, "optimizer.learning_rate": 0.001}
    write_sweep(tmp_path, losses({64: 0.004, 128: 0.002}), overrides)
    assert "muP: the best rate moves by 1 grid step from width 64 to 128." in page_of(tmp_path)
    (tmp_path / "other").mkdir()
    write_sweep(tmp_path / "other", losses({64: 0.004, 128: 0.002}), {"optimizer.learning_rate": 0.001})
    assert "Transfer of" not in page_of(tmp_path / "other")


def test_the_curves_are_drawn(tmp_path):
    runs = [*losses({64: 0.004, 128: 0.002}), (128, 0.016, None)]
    path = tmp_path / "transfer.png"
    draw_transfer([Transfer.of_runs("muP", runs), Transfer.of_runs("standard", runs)], str(path), title="t")
    assert path.read_bytes().startswith(b"\x89PNG")
