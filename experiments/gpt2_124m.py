"""GPT-2 small (124M parameters, Radford et al. 2019) with nanoGPT's recipe, on any text source.

    lm train --config experiments/gpt2_124m.py --workdir runs/gpt2 --config.data.path='corpus/*.jsonl'
    lm inspect --config experiments/gpt2_124m.py

Hardware: written for a v5e:4x4, for which its step compiles ahead of time to 3.9 of a chip's 15.75 GiB; eight H200s
hold it too. The global batch is 480 rows of 1,024 tokens, in `accumulation_steps` micro-batches. 600,000 steps are
about 300B tokens. It has not been trained to the end here. `lm inspect` gives its size: 124,475,904 parameters with
the vocabulary padded to 50,304.
"""

from lm.config import default
from lm.presets import preset

HARDWARE = "v5e:4x4"


def get_config():
    config = default()
    config.data.source = "jsonl"
    config.data.path = "corpus"
    config.data.tokenizer = "gpt2"
    config.data.sequence_length = 1024
    config.data.batch_size = 480
    config.data.validation_fraction = 0.0005

    config.model.update(preset("gpt2"))
    config.model.vocab_size = None  # the tokenizer's, padded
    config.model.remat = "dots"

    config.precision.compute = "bfloat16"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 6e-4
    config.optimizer.final_learning_rate = 0.1
    config.optimizer.num_steps = 600_000
    config.optimizer.warmup_steps = 2_000
    config.optimizer.weight_decay = 0.1
    config.optimizer.accumulation_steps = 5

    config.eval.every_steps = 1_000
    config.eval.tokens = 1_000_000
    config.checkpoint.every_steps = 1_000
    config.log.sample_every_steps = 10_000
    return config
