"""Tiny Shakespeare in two minutes on a laptop's CPU: the most learning per second we know how to get.

    lm train --config experiments/shakespeare.py --workdir runs/shakespeare --config.data.path=input.txt
    lm eval --checkpoint runs/shakespeare --data test --stride 16

Two CPU cores, 72 s for the whole `lm train` process with empty caches: 2.121 bits per byte on the last tenth of the
text, which nothing was chosen on (windows of 64 tokens, stride 16). nanoGPT's CPU quick start beside it: 2.721 in
148 s on another day. `python -m experiments.benchmarks.shakespeare` runs both.
"""

from lm.config import default


def get_config():
    config = default()
    config.data.source = "text"
    config.data.tokenizer_vocab_size = 2048
    config.data.sequence_length = 64
    config.data.batch_size = 16
    config.data.validation_fraction = 0.0
    config.data.test_fraction = 0.1  # the last tenth, for the final figure only
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.num_heads = 2
    config.model.activation = "relu2"
    config.model.qk_norm = True
    config.model.logit_softcap = 15.0
    config.model.tie_embeddings = False
    config.model.value_embeddings = True
    config.model.initializer = "zero_out"
    config.model.embedding_std = 1.0
    config.optimizer.name = "muon"
    config.optimizer.num_steps = 600
    config.optimizer.warmup_steps = 10
    config.optimizer.schedule = "wsd"
    config.optimizer.decay_fraction = 0.7
    config.optimizer.learning_rate = 0.009
    config.optimizer.muon_iterations = 3
    config.optimizer.adam_learning_rate = 0.01
    config.optimizer.lr_multipliers = (("embedding$", 40.0),)
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.8
    config.optimizer.clip_norm = None
    config.checkpoint.every_steps = 10_000
    config.log.sample_every_steps = 10_000
    config.log.sample_prompts = ("ROMEO:\n",)
    return config
