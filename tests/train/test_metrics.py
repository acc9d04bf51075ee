"""metrics.jsonl stays valid JSON, survives kills, and continues where a resumed run continues."""

import json
import math

import numpy as np
import pytest

from lm.errors import DamagedFileError
from lm.train.metrics import EventSink, JsonlSink, combine, read_metrics


def train(step, loss=1.0, **more):
    return {"step": step, "loss": loss, "bits_per_byte": 2.0, "tokens_per_second": 10.0, "mfu": None, **more}


def steps(workdir):
    return [record["step"] for record in read_metrics(workdir)]


def strict(line):
    """Parse as JSON proper, which knows no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_records_come_back_bit_for_bit(tmp_path):
    sink = JsonlSink(str(tmp_path))
    loss = float(np.float32(1) / np.float32(3))
    sink.write(train(1, loss))
    sink.write({"kind": "eval", "step": 1, "split": "validation", "loss": math.pi})
    sink.close()
    assert read_metrics(str(tmp_path)) == [
        train(1, loss),
        {"kind": "eval", "step": 1, "split": "validation", "loss": math.pi},
    ]


def test_each_record_is_on_disk_when_write_returns(tmp_path):
    JsonlSink(str(tmp_path)).write(train(1))  # neither flushed nor closed, as under kill -9
    assert steps(str(tmp_path)) == [1]


def test_an_unknown_mfu_is_null_and_not_called_nonfinite(tmp_path):
    JsonlSink(str(tmp_path)).write(train(1))
    line = strict((tmp_path / "metrics.jsonl").read_text())
    assert line["mfu"] is None
    assert "nonfinite" not in line


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.array(np.inf)])
def test_what_is_not_finite_becomes_null_and_is_named(tmp_path, value):
    JsonlSink(str(tmp_path)).write(train(3, value))
    line = strict((tmp_path / "metrics.jsonl").read_text())
    assert line["loss"] is None
    assert line["nonfinite"] == ["loss"]
    assert line["bits_per_byte"] == 2.0


def test_a_nan_hidden_in_a_nested_value_is_refused_rather_than_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        JsonlSink(str(tmp_path)).write(train(3, norms={"layer": math.nan}))
    assert read_metrics(str(tmp_path)) == []


def test_numpy_scalars_and_zero_dimensional_arrays_are_numbers(tmp_path):
    JsonlSink(str(tmp_path)).write(train(np.int64(3), np.float32(0.5), grad_norm=np.array(2.0)))
    assert read_metrics(str(tmp_path)) == [train(3, 0.5, grad_norm=2.0)]


def test_resume_drops_what_came_after_the_restored_step(tmp_path):
    sink = JsonlSink(str(tmp_path))
    for step in (1, 2, 3, 4):
        sink.write(train(step))
        sink.write({"kind": "eval", "step": step, "split": "validation", "loss": 1.0})
    sink.close()
    sink = JsonlSink(str(tmp_path))
    sink.truncate_after(2)
    sink.write(train(3, 0.25))
    sink.close()
    assert steps(str(tmp_path)) == [1, 1, 2, 2, 3]
    assert read_metrics(str(tmp_path))[-1]["loss"] == 0.25


def test_a_fresh_start_in_a_used_folder_drops_everything(tmp_path):
    sink = JsonlSink(str(tmp_path))
    sink.write(train(0))
    sink.truncate_after(-1)
    assert steps(str(tmp_path)) == []


def test_resume_drops_a_torn_last_line_even_if_its_step_would_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert steps(str(tmp_path)) == [1]
    sink = JsonlSink(str(tmp_path))
    sink.truncate_after(5)
    sink.write(train(2))
    assert steps(str(tmp_path)) == [1, 2]


def test_truncating_a_run_without_metrics_makes_no_file(tmp_path):
    JsonlSink(str(tmp_path)).truncate_after(-1)
    assert not list(tmp_path.iterdir())
    assert read_metrics(str(tmp_path)) == []


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1.0}', '{"step": null}', "\0\0\0"])
def test_a_damaged_line_in_the_middle_is_named_with_its_number(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    for use in (lambda: read_metrics(str(tmp_path)), lambda: JsonlSink(str(tmp_path)).truncate_after(9)):
        with pytest.raises(DamagedFileError, match=r"metrics.jsonl.* line 2 "):
            use()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3  # refused, not half rewritten


def test_on_an_object_store_a_flush_makes_records_readable_and_resume_cuts_them():
    workdir = "memory://test-metrics/run"
    sink = JsonlSink(workdir)
    for step in (1, 2, 3):
        sink.write(train(step))
        sink.flush()
    assert steps(workdir) == [1, 2, 3]
    sink = JsonlSink(workdir)
    sink.truncate_after(2)
    sink.write(train(3, 0.5))
    sink.close()
    assert steps(workdir) == [1, 2, 3]
    assert read_metrics(workdir)[-1]["loss"] == 0.5


def test_events_get_the_numbers_of_a_record_under_its_split(tmp_path, monkeypatch):
    seen = []
    sink = EventSink(str(tmp_path))
    monkeypatch.setattr(sink._writer, "scalars", lambda step, values: seen.append((step, values)))
    sink.write({"kind": "train", "step": 4, "loss": np.float32(0.5), "mfu": None, "done": True, "note": "x"})
    sink.write({"kind": "eval", "step": 4, "split": "validation", "loss": 2.0, "tokens": 8})
    assert seen == [(4, {"train/loss": 0.5}), (4, {"validation/loss": 2.0, "validation/tokens": 8})]


class Spy:
    def __init__(self, fails=False):
        self.calls, self.fails = [], fails

    def write(self, record):
        self.calls.append(record["step"])

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")
        if self.fails:
            raise OSError("disk full")


def test_combined_sinks_all_close_in_order_even_if_one_fails():
    sinks = [Spy(), Spy(fails=True), Spy()]
    both = combine(sinks)
    both.write(train(1))
    both.flush()
    with pytest.raises(OSError, match="disk full"):
        both.close()
    assert [sink.calls for sink in sinks] == [[1, "flush", "close"]] * 3
