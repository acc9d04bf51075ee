"""What the sweeps vary at their small setting: 1.2M parameters, seconds a run on two CPU cores.

    lm train --config experiments/sweeps/small.py --workdir runs/small

Nothing special about it: a Llama-like block, AdamW, a cosine. A sweep at full size takes another base:
`lm sweep --config experiments/sweeps/swiglu_vs_gelu.py --base experiments/llama_1b.py --workdir …`.
"""

from lm.config import default


def get_config():
    config = default()
    config.data.source = "stdlib"
    config.data.tokenizer_vocab_size = 2048
    config.data.sequence_length = 128
    config.data.batch_size = 8
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.qk_norm = True
    config.model.tie_embeddings = False
    config.model.initializer = "zero_out"
    config.model.embedding_std = 1.0
    config.optimizer.learning_rate = 6e-3
    config.optimizer.num_steps = 250
    config.optimizer.warmup_steps = 20
    config.optimizer.weight_decay = 0.1
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep = 1
    config.eval.every_steps = 50
    config.eval.tokens = 32_768
    config.log.every_steps = 10
    return config
