"""A task from beginning to end, stopped and continued; its figures against counting by hand."""

import csv
import dataclasses
import json
import math
import os

import numpy as np
import pytest

from lm.errors import DamagedFileError, Preempted
from lm.evaluate import runner
from lm.evaluate.core import CORE, centred, core_score
from lm.evaluate.formats import Item
from lm.evaluate.records import ItemLog, item_record, read_items, summarize_items
from lm.evaluate.runner import harness_results, run_task
from lm.evaluate.score import Score
from lm.evaluate.tasks import Task

CHOICES = [Item(str(i), (f"q{i}",), ("short", "a longer one", "x"), i % 3) for i in range(30)]
TASK = Task("own", tuple(CHOICES), 0, "own.jsonl", 30, "f" * 12)


class FakeScorer:
    """Scores drawn from the ids alone, in batches of four requests, in an order of its own; counts what it scores."""

    def __init__(self):
        self.scored = 0

    def stream(self, params, requests):
        order = np.random.default_rng(0).permutation(len(requests)).tolist()
        for first in range(0, len(order), 4):
            batch = order[first : first + 4]
            self.scored += len(batch)
            yield [
                (i, Score(float(-np.random.default_rng(sum(map(sum, requests[i]))).uniform(1, 9)), i % 2 == 0))
                for i in batch
            ]


def encode(context: str, continuation: str) -> tuple[list[int], list[int]]:
    return [ord(c) for c in context], [ord(c) for c in continuation]


def test_an_items_answer_is_the_likeliest_by_sum_character_byte_and_token():
    item = Item("7", ("q",), ("éé", "abcdef"), 1)
    record = item_record(item, [Score(-6.0, False), Score(-10.0, True)], [2, 6])
    # -6 > -10; by characters -3 < -1.67; by bytes -1.5 > -1.67; by tokens -3 < -1.67
    assert [record[name] for name in ("correct", "correct_norm", "correct_bytes", "correct_per_token")] == [0, 1, 0, 1]
    assert record["loglikelihoods"] == [-6.0, -10.0]
    assert record["gold_bytes"] == len(" abcdef")
    continuation = item_record(Item("8", ("q",), ("b",), 0), [Score(-1.0, True)], [1])
    assert continuation["correct"] == continuation["correct_per_token"] == 1


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_scores_that_are_not_finite_answer_nothing(bad):
    for item in Item("7", ("q",), ("right", "wrong"), 0), Item("8", ("q",), ("right",), 0):
        record = item_record(item, [Score(bad, True)] * len(item.choices), [1] * len(item.choices))
        right = [record[name] for name in ("correct", "correct_norm", "correct_bytes", "correct_per_token")]
        assert right == [0, 0, 0, 0]


def test_figures_of_a_task_are_means_with_their_standard_errors():
    records = [
        {
            "correct": c,
            "correct_norm": n,
            "correct_bytes": 0,
            "correct_per_token": c,
            "gold": 0,
            "loglikelihoods": [-2.0, -3.0],
            "gold_bytes": 4,
        }
        for c, n in ((1, 1), (1, 0), (0, 0), (1, 0))
    ]
    figures = summarize_items(records, is_choice=True, baseline=0.5)
    assert figures["acc"] == 0.75
    assert figures["acc_stderr"] == pytest.approx(np.std([1, 1, 0, 1], ddof=1) / 2)
    assert figures["acc_norm"] == 0.25
    assert figures["acc_centered"] == 0.5
    assert figures["bits_per_byte"] == pytest.approx(8 / 16 / math.log(2))
    assert "perplexity" not in figures
    assert summarize_items(records, is_choice=False, baseline=0)["perplexity"] == pytest.approx(math.exp(2))


def test_core_is_the_mean_of_centred_accuracies():
    assert centred(0.25, 0.25) == 0
    assert centred(1.0, 0.62) == 1
    assert len(CORE) == 22
    shots = {"piqa": 10, "copa": 0, "blimp_wh_island": 0, "boolq": 0}
    core = core_score({"piqa": 0.2, "copa": 0.4, "blimp_wh_island": 0.9, "boolq": 0.7}, shots)
    assert core == {"score": pytest.approx(0.3), "tasks": ["copa", "piqa"], "of": 22}
    assert core_score({"own": 0.1}, {"own": 0}) is None
    assert core_score({"piqa": 0.2}, {"piqa": 0}) is None, "CORE asks it with 10 worked examples"


@pytest.mark.real_data
def test_cores_table_is_dclms(real_data):
    with open(os.path.join(real_data, "eval", "core", "eval_meta_data.csv"), newline="") as file:
        rows = {row["Eval Task"]: row for row in csv.DictReader(file)}
    theirs = {name: (float(rows[name]["Random baseline"]) / 100, int(rows[name]["#shots"])) for name in CORE}
    assert {name: (pytest.approx(baseline), shots) for name, (baseline, shots) in theirs.items()} == dict(CORE)


@pytest.mark.parametrize("per_chunk", [2000, 7])
def test_a_stopped_task_continues_after_what_is_kept(tmp_path, monkeypatch, per_chunk):
    monkeypatch.setattr(runner, "_ITEMS", per_chunk)
    whole = run_task(FakeScorer(), None, encode, TASK)
    path = str(tmp_path / "own.jsonl")
    answers = iter([None] * 12 + ["SIGTERM"] * 100)
    with pytest.raises(Preempted, match=r"stopped by SIGTERM: \d+ of 30 items of own are kept") as stopped:
        run_task(FakeScorer(), None, encode, TASK, ItemLog(path), stop=lambda: next(answers))
    kept = read_items(path)
    assert 0 < len(kept) < 30
    assert f" {len(kept)} of 30" in str(stopped.value)
    with open(path, "a") as file:
        file.write('{"id": "torn')  # killed while writing
    shown, scorer = [], FakeScorer()
    figures = run_task(
        scorer, None, encode, TASK, ItemLog(path), progress=lambda done, total: shown.append((done, total))
    )
    assert figures == whole
    assert scorer.scored == 3 * (30 - len(kept))
    assert shown[0][0] >= len(kept)
    assert shown[-1] == (30, 30)
    assert list(read_items(path)) != [] and len(read_items(path)) == 30


def test_a_finished_task_is_not_scored_again_unless_asked(tmp_path):
    path = str(tmp_path / "own.jsonl")
    first = run_task(FakeScorer(), None, encode, TASK, ItemLog(path))
    scorer = FakeScorer()
    assert run_task(scorer, None, encode, TASK, ItemLog(path)) == first
    assert scorer.scored == 0
    assert run_task(scorer, None, encode, TASK, ItemLog(path, again={item.id for item in TASK.items})) == first
    assert scorer.scored == 90


def test_only_the_items_asked_again_are_scored_again(tmp_path):
    path = str(tmp_path / "own.jsonl")
    run_task(FakeScorer(), None, encode, TASK, ItemLog(path))
    limited, scorer = dataclasses.replace(TASK, items=TASK.items[:10]), FakeScorer()
    run_task(scorer, None, encode, limited, ItemLog(path, again={item.id for item in limited.items}))
    assert scorer.scored == 30 and len(read_items(path)) == 30


@pytest.mark.parametrize("line", ["{oops", "[1]", "7", '{"correct": 1}'])
def test_a_kept_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "own.jsonl"
    path.write_text(f'{{"id": "0"}}\n{line}\n')
    for read in read_items, ItemLog:
        with pytest.raises(DamagedFileError, match="line 2 is no record of an item"):
            read(str(path))


def test_a_limited_run_leaves_the_rest_to_a_later_one(tmp_path):
    path = str(tmp_path / "own.jsonl")
    limited = dataclasses.replace(TASK, items=TASK.items[:10])
    run_task(FakeScorer(), None, encode, limited, ItemLog(path))
    scorer = FakeScorer()
    assert run_task(scorer, None, encode, TASK, ItemLog(path)) == run_task(FakeScorer(), None, encode, TASK)
    assert scorer.scored == 60


def test_items_are_kept_on_an_object_store_too():
    path = "memory://evals-test/own.jsonl"
    answers = iter([None] * 6 + ["SIGINT"] * 100)
    with pytest.raises(Preempted):
        run_task(FakeScorer(), None, encode, TASK, ItemLog(path), stop=lambda: next(answers))
    assert 0 < len(read_items(path)) < 30
    assert run_task(FakeScorer(), None, encode, TASK, ItemLog(path)) == run_task(FakeScorer(), None, encode, TASK)


def test_results_have_the_harnesss_shape():
    figures = run_task(FakeScorer(), None, encode, TASK)
    results = harness_results(TASK, figures, step=7)
    assert results["results"]["own"]["acc,none"] == figures["acc"]
    assert results["results"]["own"]["acc_stderr,none"] == figures["acc_stderr"]
    assert results["n-samples"]["own"] == {"original": 30, "effective": 30}
    assert results["configs"]["own"]["num_fewshot"] == 0
    assert results["config"] == {"step": 7}
    json.dumps(results)
