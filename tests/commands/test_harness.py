"""lm-evaluation-harness with our model class: its three kinds of requests, against the model itself and our runner."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lm.evaluate.records import read_items

pytestmark = pytest.mark.peer

CHOICES = [{"context": f"the word {i}", "choices": [f"is {i}", "abc dej"], "gold": i % 2} for i in range(12)]
TASKS = {
    "chosen": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{context}}",
        "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "continued": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    rows = folder / "chosen.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    for name, task in TASKS.items():
        local = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}}
        (folder / f"{name}.yaml").write_text(json.dumps({**local, "test_split": "test", **task}))
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_harness_and_our_runner_agree_item_by_item(lm, run, folder, offline):
    theirs = lm("eval", "--checkpoint", run, "--tasks", "chosen", "--include-path", folder, "--json")
    assert theirs.code == 0, theirs.err
    results = json.loads(theirs.out)
    assert results["n-samples"]["chosen"] == {"original": 12, "effective": 12}
    ours = json.loads(lm("eval", "--checkpoint", run, "--tasks", folder / "chosen.jsonl", "--json").out)["tasks"][
        "chosen"
    ]
    for name in ("acc", "acc_norm", "acc_stderr"):
        assert results["results"]["chosen"][f"{name},none"] == pytest.approx(ours[name])
    assert list((run / "evals" / "20-params").glob("harness-*.json"))
    assert len(read_items(ours["file"])) == 12


@pytest.fixture
def model(run, offline):
    """Our class, what it wraps, and a generator of the same model."""
    from lm.commands.eval_tasks import harness_model
    from lm.commands.opened import open_run
    from lm.evaluate.score import Scorer
    from lm.infer import Generator

    opened = open_run(str(run))
    generator = Generator(opened.model, opened.tokenizer.vocab_size, opened.tokenizer.eot_id)
    return harness_model(opened, Scorer(opened.config, opened.mesh, max_length=16)), opened, generator


def requests(kind: str, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=own, idx=0) for own in arguments]


def test_rolling_windows_score_every_token_once(model):
    harness, opened, _ = model
    text = "abc dej " * 12
    ids = [opened.tokenizer.eot_id, *opened.tokenizer.encode(text).tolist()]
    assert len(ids) > 40  # several windows of 16
    expected = 0.0
    for first in range(1, len(ids), 16):
        last = min(first + 16, len(ids))
        window = ids[max(0, last - 17) : last - 1]
        row = np.arange(len(window))[None]
        hidden_BTD = opened.model.hidden(opened.params, np.array([window]), row, np.ones_like(row)).x_BTD
        logits_TV = np.asarray(opened.model.logits(opened.params, hidden_BTD)[0], np.float64)
        log_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        expected += log_TV[np.arange(first - last, 0), ids[first:last]].sum()
    (total,) = harness.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert total == pytest.approx(expected, rel=1e-5)


def test_continuations_are_greedy_and_end_before_the_stop_string(model):
    harness, opened, generator = model
    prompts = ["abc", "the word 3 is abc dej the word 3 is abc dej and more of it"]
    from lm.infer import SamplingConfig

    plain = []
    for prompt in prompts:
        ids = opened.tokenizer.encode(prompt).tolist()[-(16 - 8) :]
        (new,) = generator(opened.params, [ids], max_new_tokens=8, sampling=SamplingConfig(temperature=0))
        plain.append(opened.tokenizer.decode(new))
    options = {"until": [], "max_gen_toks": 8}
    out = harness.generate_until(requests("generate_until", *((p, options) for p in prompts)), disable_tqdm=True)
    assert out == plain
    stop = plain[0][2:4]
    options = {"until": [stop], "max_gen_toks": 8}
    out = harness.generate_until(requests("generate_until", *((p, options) for p in prompts)), disable_tqdm=True)
    assert out == [text.split(stop)[0] for text in plain]


def test_all_kinds_of_tasks_run_offline_from_a_folder(lm, run, folder, offline):
    arguments = ("--tasks", "chosen,read,continued", "--include-path", folder, "--limit", 4, "--sequence-length", 24)
    done = lm("eval", "--checkpoint", run, *arguments)
    assert done.code == 0, done.err
    assert all(name in done.out for name in TASKS)
    (path,) = (run / "evals" / "20-params").glob("harness-*.json")
    results = json.loads(path.read_text())
    assert results["results"]["read"]["bits_per_byte,none"] > 0
    assert results["n-samples"]["continued"]["effective"] == 4
    assert results["config"]["step"] == 20


def test_what_the_harness_cannot_run_is_refused_in_one_line(lm, finished, folder, offline):
    assert 'no task "chose" in' in lm(
        "eval", "--checkpoint", finished, "--tasks", "chose", "--include-path", folder
    ).refusal(2)


def test_a_template_with_a_mistake_is_refused_in_one_line(lm, finished, folder, offline, tmp_path):
    task = json.loads((folder / "chosen.yaml").read_text()) | {"doc_to_text": "{{context | no_such_filter}}"}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "chosen.yaml").write_text(json.dumps(task))
    done = lm("eval", "--checkpoint", finished, "--tasks", "chosen", "--include-path", tmp_path / "tasks")
    assert done.code == 1, done.err
    assert "lm: lm-evaluation-harness: TemplateAssertionError: No filter named 'no_such_filter'" in done.err


def test_without_the_harness_the_extra_is_named():
    code = "import sys; sys.modules['lm_eval'] = None\nimport lm.evaluate\nimport lm.evaluate.harness"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install -e '.[eval]'" in done.stderr


def test_the_harnesss_own_class_agrees_on_the_exported_model(lm, run, folder, offline, tmp_path):
    from lm_eval.models import huggingface

    exported = tmp_path / "exported"
    assert lm("export", "--checkpoint", run, "--format", "hf", "--out", exported).code == 0
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lm.commands.eval_tasks import harness_model
    from lm.commands.opened import open_run
    from lm.evaluate.score import Scorer

    opened = open_run(str(run))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    answers = []
    for model in (
        harness_model(opened, Scorer(opened.config, opened.mesh)),
        huggingface.HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=4),
    ):
        found = simple_evaluate(model=model, tasks=["chosen"], task_manager=manager, bootstrap_iters=0)
        samples = sorted(found["samples"]["chosen"], key=lambda sample: sample["doc_id"])
        figures = found["results"]["chosen"]
        answers.append((figures["acc,none"], figures["acc_norm,none"], [[r[0] for r in s["resps"]] for s in samples]))
    (*ours, our_scores), (*theirs, their_scores) = answers
    assert ours == theirs
    ours, theirs = (np.array(scores, float) for scores in (our_scores, their_scores))
    np.testing.assert_allclose(ours[..., 0], theirs[..., 0], atol=1e-3)
    assert ours[..., 1].tolist() == theirs[..., 1].tolist()
