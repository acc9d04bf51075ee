"""A Llama of 1.2 billion parameters on 10 billion tokens of FineWeb-Edu, for 16 TPU v5e chips.

    lm data build --config experiments/llama_1b.py --out shards/fineweb_edu
    lm train --config experiments/llama_1b.py --workdir gs://BUCKET/llama_1b \\
        --config.data.source=shards --config.data.path=shards/fineweb_edu
    lm inspect --config experiments/llama_1b.py --devices 16

Llama 3.2's 1B shape with a tied head and OpenAI's cl100k_base tokenizer: 1,178,667,008 parameters. 9,500 steps of
1,048,576 tokens are one pass over the sample. `lm plan --config experiments/llama_1b.py`: compiled, 3.8 of a chip's
15.75 GiB; predicted 4.3 s a step and 58 % MFU (not run on hardware).
"""

from lm.config import default
from lm.presets import preset

HARDWARE = "v5e:4x4"


def get_config():
    config = default()
    config.data.source = "download"
    config.data.path = "fineweb_edu_10bt"
    config.data.tokenizer = "cl100k_base"
    config.data.sequence_length = 2048
    config.data.batch_size = 512
    config.data.validation_fraction = 0.0005

    config.model.update(preset("llama_1b"))
    config.model.vocab_size = None  # the tokenizer's
    config.model.tie_embeddings = True
    config.model.remat = "full"

    config.precision.compute = "bfloat16"
    config.parallel.data = 1
    config.parallel.fsdp = 16

    config.optimizer.learning_rate = 4e-4
    config.optimizer.final_learning_rate = 0.1
    config.optimizer.num_steps = 9_500
    config.optimizer.warmup_steps = 500
    config.optimizer.accumulation_steps = 8
    config.z_loss = 1e-4

    config.checkpoint.every_steps = 500
    config.eval.every_steps = 500
    config.eval.tokens = 1_048_576
    config.log.sample_every_steps = 500
    return config
