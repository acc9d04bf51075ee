"""Gemma 2's 2B shape for 16 TPU v6e chips: local and global layers in turn, soft caps, norms on both sides.

    lm train --config experiments/gemma2_2b.py --workdir gs://BUCKET/gemma2_2b
    lm inspect --config experiments/gemma2_2b.py --devices 16

The shape is the public one (Gemma Team 2024) with OpenAI's o200k_base vocabulary of 200,019 tokens in place of
Gemma's 256,000.
"""

from lm.config import default
from lm.presets import preset

HARDWARE = "v6e:4x4"


def get_config():
    config = default()
    config.data.source = "download"
    config.data.path = "fineweb_edu_10bt"
    config.data.tokenizer = "o200k_base"
    config.data.sequence_length = 8192
    config.data.batch_size = 128
    config.data.validation_fraction = 0.0005

    config.model.update(preset("gemma2_2b"))
    config.model.vocab_size = None  # the tokenizer's
    config.model.remat = "full"

    config.precision.compute = "bfloat16"
    config.parallel.data = 1
    config.parallel.fsdp = 16

    config.optimizer.learning_rate = 3e-4
    config.optimizer.final_learning_rate = 0.1
    config.optimizer.num_steps = 9_500
    config.optimizer.warmup_steps = 500
    config.optimizer.accumulation_steps = 8

    config.checkpoint.every_steps = 500
    config.eval.every_steps = 500
    config.eval.tokens = 1_048_576
    config.log.sample_every_steps = 500
    return config
