"""A small Llama-shaped model on the Python standard library's own source.

lm train --config experiments/tiny.py --workdir runs/tiny
"""

from lm.config import default


def get_config():
    config = default()
    config.data.source = "stdlib"
    config.data.tokenizer = "train"
    config.data.tokenizer_vocab_size = 4096
    config.data.sequence_length = 128
    config.data.batch_size = 16
    config.model.num_layers = 4
    config.model.d_model = 192
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.qk_norm = True
    config.model.initializer = "fan_in"
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.num_steps = 400
    config.log.sample_prompts = ("import os\n", "def main(")
    return config
