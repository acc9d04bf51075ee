"""Llama 2's 7B shape for 64 TPU v5p chips: ZeRO-3 over all of them, 4 million tokens a step.

    lm data build --config experiments/llama_7b.py --out gs://BUCKET/fineweb_edu
    lm train --config experiments/llama_7b.py --workdir gs://BUCKET/llama_7b \\
        --config.data.source=shards --config.data.path=gs://BUCKET/fineweb_edu
    lm inspect --config experiments/llama_7b.py --devices 64

`lm plan --config experiments/llama_7b.py`: compiled, 10.6 of a chip's 95.7 GiB; predicted 10.7 s a step and 59 % MFU
(not run on hardware). The learning rate, decay, betas and warmup are Llama 2's (Touvron et al. 2023, table 1 and section 2.2).
"""

from lm.config import default
from lm.presets import preset

HARDWARE = "v5p:4x4x4"


def get_config():
    config = default()
    config.data.source = "huggingface"
    config.data.path = "HuggingFaceFW/fineweb-edu"
    config.data.tokenizer = "cl100k_base"
    config.data.sequence_length = 4096
    config.data.batch_size = 1024
    config.data.validation_fraction = 0.0001

    config.model.update(preset("llama_7b"))
    config.model.vocab_size = None  # the tokenizer's
    config.model.remat = "full"

    config.precision.compute = "bfloat16"
    config.parallel.data = 1
    config.parallel.fsdp = 64

    config.optimizer.learning_rate = 3e-4
    config.optimizer.final_learning_rate = 0.1
    config.optimizer.num_steps = 250_000
    config.optimizer.warmup_steps = 2_000
    config.optimizer.accumulation_steps = 4

    config.checkpoint.every_steps = 500
    config.eval.every_steps = 1_000
    config.eval.tokens = 4_194_304
    config.log.sample_every_steps = 1_000
    return config
