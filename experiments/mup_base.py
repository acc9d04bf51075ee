"""The base of a muP sweep: hyperparameters tuned at width 64 hold at larger widths (Yang et al. 2022).

    lm train --config experiments/mup_base.py --workdir runs/mup_64
    lm train --config experiments/mup_base.py --workdir runs/mup_256 --config.model.d_model=256 \\
        --config.model.num_heads=16 --config.model.d_ff=704

Heads keep their width of 16 and grow in number, so that the attention's scale needs no change. Tune the learning
rate here, then widen: `mup_base_width` stays 64 and the rates of kernels, the initialization and the logits'
multiplier follow from it.
"""

from lm.config import default


def get_config():
    config = default()
    config.data.source = "stdlib"
    config.data.tokenizer_vocab_size = 2048
    config.data.sequence_length = 128
    config.data.batch_size = 8

    config.model.num_layers = 4
    config.model.d_model = 64
    config.model.num_heads = 4
    config.model.head_dim = 16
    config.model.d_ff = 176
    config.model.qk_norm = True
    config.model.tie_embeddings = False
    config.model.initializer = "mup"
    config.model.mup_base_width = 64
    config.model.embedding_std = 1.0

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.num_steps = 300
    config.optimizer.warmup_steps = 30
    config.optimizer.weight_decay = 0.0
    return config
