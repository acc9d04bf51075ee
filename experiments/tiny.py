"""The main job: a small model on the Python standard library's own source, in minutes on two CPU cores.

    lm train --config experiments/tiny.py --workdir runs/tiny

Two CPU cores, Python 3.11.7's library (12 MB): about 2.5 minutes, first step after 15 s (4 s when data and programs are
cached), 1.573 bits per byte on the held-out files; 1.572 with --config.precision.compute=bfloat16 and
1.573 with float16, no step skipped.
"""

from lm.config import default


def get_config():
    config = default()
    config.data.source = "stdlib"
    config.data.tokenizer_vocab_size = 4096
    config.data.sequence_length = 128
    config.data.batch_size = 8

    config.model.num_layers = 4
    config.model.d_model = 192
    config.model.num_heads = 3
    config.model.num_kv_heads = 1
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
    config.optimizer.learning_rate = 0.009  # of the matrices, by Muon
    config.optimizer.muon_iterations = 3
    config.optimizer.adam_learning_rate = 0.01  # of the rest, by AdamW
    config.optimizer.lr_multipliers = (("embedding$", 30.0),)
    config.optimizer.b1 = 0.8
    config.optimizer.weight_decay = 0.0

    config.log.sample_prompts = ("import os\n", "def main(")
    return config
