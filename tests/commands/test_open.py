"""`lm.open`: a trained model in a notebook."""

import json
import shutil

import numpy as np
import pytest

import lm as package
from lm.commands.opened import OpenedRun, open_run
from lm.errors import DamagedFileError, UsageError
from tests.commands.runs import finish, start

TEXT = "abc dab fgh " * 30


@pytest.fixture(scope="module")
def model(finished) -> OpenedRun:
    return package.open(str(finished))


def test_importing_lm_imports_neither_jax_nor_numpy():
    code = "import sys, lm; assert not {'jax', 'numpy', 'tensorstore'} & set(sys.modules); print(lm.__version__)"
    exit_code, out, err = finish(start(code=code))
    assert exit_code == 0 and out.strip() == package.__version__, err


def test_rooms_are_imported_where_they_are_used_and_a_typo_is_an_attribute_error(finished):
    assert package.checkpoint.open(str(finished)).step == 20
    with pytest.raises(AttributeError, match="opne"):
        _ = package.opne


def test_a_run_or_one_step_of_it_is_opened(finished, model):
    assert (model.step, model.weights) == (20, "params")
    assert model.config.model.d_model == 32
    assert package.open(str(finished / "checkpoints" / "16")).step == package.open(str(finished), 16).step == 16
    with pytest.raises(UsageError, match="keeps no moving average"):
        package.open(str(finished), weights="ema")


def test_info_is_config_json(finished, model):
    assert model.info == json.loads((finished / "config.json").read_text())


def test_a_checkpoint_of_another_run_is_not_opened(run, train, tmp_path):
    other = tmp_path / "other"
    few = "--config.optimizer.num_steps=3", "--config.checkpoint.every_steps=3"
    assert train(other, "--config.seed=5", *few).code == 0
    shutil.copytree(other / "checkpoints" / "3", run / "checkpoints" / "30")
    with pytest.raises(DamagedFileError, match=r'30" is of another run'):
        package.open(str(run), 30)
    assert package.open(str(run)).step == 20
    assert open_run(str(run), average=2).averaged == (16, 20)
    assert package.open(str(other)).step == 3


def test_logits_are_those_of_the_loss(model):
    ids = np.asarray(model.tokenizer.encode_document(TEXT[:40]))
    logits_TV = model.logits(ids)
    assert logits_TV.shape == (len(ids), model.config.model.vocab_size) and logits_TV.dtype == np.float32
    log_p = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
    targets_T = np.append(ids[1:], model.tokenizer.eot_id)  # a document ends with the separator
    figures = model.loss(TEXT[:40])
    assert figures["tokens"] == len(ids) and figures["bytes"] == 40
    assert figures["loss"] == pytest.approx(-log_p[np.arange(len(ids)), targets_T].mean(), rel=1e-5)


def test_logits_do_not_depend_on_padding_or_on_the_batch(model):
    ids = np.asarray(model.tokenizer.encode_document(TEXT))[:40]
    whole_TV = model.logits(ids)
    np.testing.assert_allclose(model.logits(ids[:7]), whole_TV[:7], atol=1e-5)
    batch_BTV = model.logits(np.stack([ids[:7], ids[3:10], ids[1:8]]))
    assert batch_BTV.shape == (3, 7, model.config.model.vocab_size)
    np.testing.assert_allclose(batch_BTV[0], whole_TV[:7], atol=1e-5)
    assert np.abs(batch_BTV[1] - whole_TV[:7]).max() > 1e-2


def test_lengths_share_compiled_programs(model):
    ids = np.asarray(model.tokenizer.encode_document(TEXT))
    model.logits(ids[:17])
    compiled = model._logits._cache_size()
    for length in range(17, 33):
        model.logits(ids[:length])
    assert model._logits._cache_size() == compiled


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], "expected token ids"),
        ([0.5], "expected token ids"),
        ([[[1]]], "expected token ids"),
        ([10**6], "there are"),
    ],
    ids=str,
)
def test_what_are_no_token_ids_is_refused(model, ids, expected):
    with pytest.raises(UsageError, match=expected):
        model.logits(ids)


def test_generate_is_lm_generate(lm, finished, model):
    options = "--prompt=abc", "--max-new-tokens=12", "--seed=3", "--json"
    expected = json.loads(lm("generate", "--checkpoint", finished, *options).out)["samples"][0]
    assert model.generate("abc", max_new_tokens=12, seed=3) == expected != ""
    greedy = model.generate(["abc", "fgh"], max_new_tokens=6, temperature=0)
    assert greedy == [model.generate(text, max_new_tokens=6, temperature=0) for text in ("abc", "fgh")]
    with pytest.raises(UsageError, match="max_new_tokens=0"):
        model.generate("abc", max_new_tokens=0)


def test_loss_is_lm_eval(lm, finished, model, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    result = json.loads(lm("eval", "--checkpoint", finished, f"--data={tmp_path}/a.txt", "--stride=8", "--json").out)
    figures = model.loss(TEXT, stride=8)
    assert figures == pytest.approx({name: result[name] for name in figures}, rel=1e-5)
    several = model.loss([TEXT, TEXT[:24], ""])
    assert several["bytes"] == len(TEXT) + 24


def test_a_text_that_is_empty_and_a_stride_that_is_no_part_of_the_window_are_refused(model):
    with pytest.raises(UsageError, match="no text"):
        model.loss("")
    with pytest.raises(UsageError, match="stride=99"):
        model.loss("abc", stride=99)
