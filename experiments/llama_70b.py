"""Llama 2's 70B shape (grouped queries) for 512 TPU v5p chips: ZeRO-3 over all of them.

    lm train --config experiments/llama_70b.py --workdir gs://BUCKET/llama_70b \\
        --config.data.source=shards --config.data.path=gs://BUCKET/fineweb_edu
    lm inspect --config experiments/llama_70b.py --devices 512

`lm plan --config experiments/llama_70b.py`: compiled, 14.2 of a chip's 95.7 GiB; predicted 12.5 s a step and 61 % MFU
(not run on hardware). Data as for llama_7b.py; the learning rate is Llama 2's for this size.
"""

import llama_7b  # the config beside this one

from lm.presets import preset

HARDWARE = "v5p:8x8x8"


def get_config():
    config = llama_7b.get_config()
    config.model.update(preset("llama_70b"))
    config.model.vocab_size = None  # the tokenizer's
    config.parallel.fsdp = 512
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.accumulation_steps = 2
    return config
