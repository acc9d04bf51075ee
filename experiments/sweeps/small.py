"""What the sweeps vary at their small setting: 1.2M parameters, half a minute a run on two CPU cores.

    lm train --config experiments/sweeps/small.py --workdir runs/small

The model is Llama-like; the optimizer is tiny.py's, whose seeds differ by 0.5 % where those of AdamW at its best rate
differed by 2.4 %: what a sweep can see is a multiple of that. A sweep at full size takes another base:
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
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.009
    config.optimizer.muon_iterations = 3
    config.optimizer.adam_learning_rate = 0.01
    config.optimizer.lr_multipliers = (("embedding$", 30.0),)
    config.optimizer.b1 = 0.8
    config.optimizer.weight_decay = 0.0
    config.optimizer.num_steps = 200
    config.optimizer.warmup_steps = 10
    config.optimizer.schedule = "wsd"
    config.optimizer.decay_fraction = 0.7
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep = 1
    config.eval.every_steps = 50
    config.eval.tokens = 32_768
    config.log.every_steps = 10
    return config
