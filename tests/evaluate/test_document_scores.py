"""Documents' bits per byte: each one's own, whatever it is scored beside."""

import math

import jax
import numpy as np
import pytest

from lm.axes import SHARDED_AXES
from lm.evaluate import LossEvaluator
from lm.evaluate.document_scores import DocumentScorer
from lm.model import Transformer
from lm.parallel.auto import auto_layout
from lm.parallel.local import local_model
from lm.parallel.mesh import parameter_shardings
from lm.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer
from tests.train.common import mesh_of, small_config

BYTES = Tokenizer("bytes", PATTERNS["gpt2"], {bytes([i]): i for i in range(256)}, {END_OF_TEXT: 256})
LENGTH = 16
TEXTS = ["", "é", "A longer one, that takes several windows of sixteen tokens each."]


@pytest.fixture(scope="module")
def opened():
    mesh, config = mesh_of(1, 1), small_config(**{"model.vocab_size": "384"})
    model = Transformer(config.model, config.precision, auto_layout(mesh))
    params = jax.jit(model.init)(jax.random.key(3))
    params = jax.device_put(params, parameter_shardings(mesh, params, SHARDED_AXES))
    return model, params, LossEvaluator(local_model(config, mesh))


def by_hand(model, params, text: str) -> float:
    """One window at a time, filled up at its end: a causal model's earlier places do not see that."""

    @jax.jit
    def log_probabilities(inputs):
        hidden, *_ = model.hidden(params, inputs, np.arange(LENGTH)[None], np.ones((1, LENGTH), np.int32))
        return jax.nn.log_softmax(model.logits(params, hidden)[0])

    ids, nll = [*BYTES.encode_document(text).tolist(), BYTES.eot_id], 0.0
    for start in range(0, len(ids) - 1, LENGTH):
        targets = ids[start + 1 : start + 1 + LENGTH]
        inputs = (ids[start : start + len(targets)] + [0] * LENGTH)[:LENGTH]
        nll -= float(log_probabilities(np.array([inputs]))[np.arange(len(targets)), np.array(targets)].sum())
    return nll / len(text.encode()) / math.log(2)


@pytest.mark.slow
def test_every_document_has_the_bits_per_byte_of_scoring_it_alone(opened):
    model, params, evaluator = opened
    scorer = DocumentScorer(evaluator, params, BYTES, sequence_length=LENGTH, batch_size=2)
    assert scorer([]) == []
    empty, *others = scorer(TEXTS)
    assert empty == math.inf
    assert others == pytest.approx([by_hand(model, params, text) for text in TEXTS[1:]], rel=1e-4)
    assert evaluator._tokens._cache_size() == 1  # one compilation for all of them
    cut = DocumentScorer(evaluator, params, BYTES, sequence_length=LENGTH, batch_size=2, max_characters=5)
    assert cut([TEXTS[2]]) == pytest.approx(scorer([TEXTS[2][:5]]))
