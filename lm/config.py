"""The config: frozen dataclasses, one per room, one comment per field.

`default()` gives them as an `ml_collections.ConfigDict` for `experiments/*.py` to change by
assignment; `apply_overrides` adds `--config.a.b=v` from the command line; `lm/resolve.py` validates
the result.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import ConfigError
from lm.fields import field_types, option, parse, sections_of, unknown_field

BIASES = ("query", "key", "value", "out", "gate", "up", "down", "norm")
INITIALIZERS = ("gpt2", "normal", "fan_in", "zero_out", "xavier", "kaiming_in", "kaiming_out", "mup", "spectral")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The transformer's shape. Fields that hold a tuple per layer repeat it over the layers."""

    block: str = option("transformer")  # `transformer`, or "package.module:Name" of a Linen block
    num_layers: int = option(4, ge=1)  # L
    d_model: int = option(256, ge=1)  # D
    num_heads: int = option(4, ge=1)  # N, query heads
    num_kv_heads: int | None = option(None, ge=1)  # K, key/value heads; None: num_heads
    head_dim: int | None = option(None, ge=1)  # H; None: d_model / num_heads
    d_ff: int | None = option(None, ge=1)  # F, of each expert; None: 4 D, or 8/3 D rounded up to 64 where gated
    vocab_size: int | None = option(None, ge=2)  # V; None: the tokenizer's, padded to a multiple of 128
    tie_embeddings: bool = option(True)  # the output head is the token embedding
    embedding_scale: float = option(1.0, gt=0)  # of token embeddings as they enter the blocks (Gemma: sqrt(D))
    activation: str = option("swiglu", choices=("swiglu", "geglu", "gelu", "relu2"))  # feed-forward
    bias: tuple[str, ...] = option((), choices=BIASES)  # linear layers with a bias; `norm`: LayerNorm's
    norm: str = option("rmsnorm", choices=("rmsnorm", "layernorm"))  # of sublayers and at the end
    norm_placement: str = option("pre", choices=("pre", "post", "both"))  # before a sublayer, after it, or both
    norm_zero_centred: bool = option(False)  # norm scales are kept as their distance from 1 (Gemma)
    norm_epsilon: float = option(1e-6, gt=0, lt=1)  # added to the variance
    qk_norm: bool = option(False)  # RMSNorm of queries and keys over the head width
    attention_scale: float | None = option(None, gt=0)  # factor of the attention logits; None: 1 / sqrt(H)
    attention_softcap: float | None = option(None, gt=0)  # c * tanh(logit / c) on attention logits
    logit_softcap: float | None = option(None, gt=0)  # the same on output logits
    value_embeddings: bool = option(False)  # a token embedding per layer, added to the values (Zhou et al. 2024)
    window: tuple[int | None, ...] = option((None,), ge=1)  # sliding window per layer; None: full attention
    positions: str = option("rope", choices=("rope", "learned", "none"))  # position encoding
    max_positions: int | None = option(None, ge=1)  # learned positions; None: data.sequence_length
    rope_base: tuple[float | None, ...] = option((10000.0,), gt=1)  # wavelength base per layer; None: no rotation
    rope_scaling: str = option("none", choices=("none", "linear", "llama3", "yarn"))  # see lm/model/rope.py
    rope_factor: tuple[float, ...] = option((1.0,), ge=1)  # context extension per layer; 1: none
    rope_original_length: int | None = option(None, ge=1)  # context before the extension (llama3, yarn)
    rope_llama3_bounds: tuple[float, float] = option((1.0, 4.0), gt=0)  # turns in it: below are scaled, above kept
    rope_yarn_bounds: tuple[float, float] = option((1.0, 32.0), gt=0)  # the same for yarn
    num_experts: int | None = option(None, ge=2)  # E, of a mixture-of-experts feed-forward; None: dense
    experts_per_token: int = option(2, ge=1)  # experts that each token is sent to
    expert_capacity: float | None = option(None, gt=0)  # tokens per expert over the even share; None: drop none
    router_balance_loss: float = option(0.01, ge=0)  # weight of the load-balance loss (Fedus et al. 2022)
    router_z_loss: float = option(0.001, ge=0)  # weight of the router's z-loss (Zoph et al. 2022)
    dropout: float = option(0.0, ge=0, lt=1)  # on embeddings and sublayer outputs
    initializer: str = option("gpt2", choices=INITIALIZERS)  # see lm/model/initializers.py
    init_distribution: str = option("normal", choices=("normal", "truncated_normal", "uniform"))  # of kernels
    init_gain: float | None = option(None, gt=0)  # xavier, kaiming; None: 1, and sqrt(2) after an activation (kaiming)
    embedding_std: float = option(0.02, gt=0)  # standard deviation of embeddings, and of kernels in normal and gpt2
    mup_base_width: int | None = option(None, ge=1)  # D at which the hyperparameters were tuned (muP); None: no muP
    attention: str = option("auto", identity=False)  # implementation; auto: the best that honours the masks
    experts: str = option("auto", identity=False)  # implementation of the experts' matmuls; auto: the fastest here
    remat: str = option("none", identity=False)  # none, full, dots, or what is kept: see lm/model/remat.py
    scan_unroll: int | None = option(None, ge=1, identity=False)  # layer groups per loop iteration; None: fastest here
    loss_chunk: int = option(1024, ge=1, identity=False)  # tokens whose logits exist at one time in the loss

    @property
    def period(self) -> int:
        """Layers after which the per-layer fields repeat."""
        return math.lcm(len(self.window), len(self.rope_base), len(self.rope_factor))

    def per_layer(self, name: str, layer: int):
        """Return a per-layer field's value in a layer."""
        values = getattr(self, name)
        return values[layer % len(values)]


OPTIMIZERS = ("adamw", "muon", "adafactor", "lion", "soap", "schedule_free")  # what config.optimizer.name knows
SOURCES = {  # the built-in sources, and what data.path is to each
    "stdlib": None,  # Python's own source
    "text": "a file, a folder or a glob",
    "jsonl": "a file, a folder or a glob",
    "parquet": "a file, a folder or a glob",
    "download": "a name of `lm data download --list` or a URL",
    "huggingface": "a dataset of the hub (org/name) or a local folder",
    "shards": "a folder made by `lm data build`",
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes batches."""

    source: str = option("stdlib")  # a name in SOURCES above, or "package.module:Name"
    path: str | None = option(None, identity=False)  # what SOURCES says; data enters a run's identity as its hash
    text_key: str = option("text")  # the JSON field or the column that holds the text
    max_documents: int | None = option(None, ge=1, identity=False)  # read no more of the source; None: all
    sha256: str | None = option(None, identity=False)  # of the file at a URL (download); None: the first download's
    subset: str | None = option(None, identity=False)  # of a Hugging Face dataset; None: its default one
    split: str = option("train", identity=False)  # of a Hugging Face dataset
    revision: str | None = option(None, identity=False)  # of a Hugging Face dataset: a commit pins it; None: main
    tokenizer: str = option("train")  # a tiktoken name, a file, or `train`
    tokenizer_vocab_size: int = option(4096, ge=257)  # tokens incl. the 256 bytes, when tokenizer is `train`
    tokenizer_pattern: str = option("gpt4", choices=("gpt2", "gpt4"))  # pre-tokenizer regex, when trained
    sequence_length: int = option(128, ge=1)  # T, tokens per row
    batch_size: int = option(16, ge=1)  # B, rows per optimizer step over all devices
    stages: tuple[tuple[int, int, int], ...] = option((), ge=0)  # (first step, batch_size, sequence_length), from it on
    packing: str = option("concat", choices=("concat", "best_fit"))  # how documents fill rows
    mixture: tuple[tuple[int, str, float], ...] = option((), ge=0)  # (first step, domain, weight); (): the manifest's
    max_epochs: tuple[tuple[str, float], ...] = option((), ge=0)  # (domain, times it may be read), over the manifest's
    document_mask: bool = option(True)  # tokens attend within their own document only
    validation_fraction: float = option(0.05, ge=0, lt=1)  # of documents by hash; of a single file by position
    test_fraction: float = option(0.0, ge=0, lt=1)  # the same, never seen in training (single file: its end)
    cache: str | None = option(None, identity=False)  # prepared data; None: $LM_CACHE or ~/.cache/lm
    workers: int | None = option(None, ge=1, identity=False)  # encoding processes; None: one per core
    prefetch: int = option(2, ge=1, identity=False)  # batches built ahead in the background
    verify: bool = option(True, identity=False)  # hash the shards at every start; beyond 1 GB, while training goes on

    @property
    def schedule(self) -> tuple[tuple[int, int, int], ...]:
        """All stages: before the first of `stages` come `batch_size` rows of `sequence_length`."""
        begun = bool(self.stages) and self.stages[0][0] == 0
        return self.stages if begun else ((0, self.batch_size, self.sequence_length), *self.stages)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    name: str = option("adamw")  # one of OPTIMIZERS, or "package.module:Name" of an optax transform
    options: tuple[tuple[str, float], ...] = option(())  # (argument, value) for an optimizer of one's own
    learning_rate: float = option(1e-3, gt=0)  # peak
    num_steps: int = option(400, ge=1)  # optimizer steps
    warmup_steps: int = option(20, ge=0)  # linear from 0
    schedule: str = option("cosine", choices=("cosine", "linear", "wsd", "constant"))  # after the warmup
    final_learning_rate: float = option(0.0, ge=0, le=1)  # where the schedule ends, as a fraction of the peak
    decay_fraction: float = option(0.2, gt=0, le=1)  # of num_steps that wsd spends decaying
    weight_decay: float = option(0.1, ge=0)  # decoupled; kernels and embeddings, not norms and biases
    weight_decay_multipliers: tuple[tuple[str, float], ...] = option((), ge=0)  # (path regex, factor), first match wins
    b1: float = option(0.9, ge=0, lt=1)  # first moment; Lion's interpolation; schedule_free's between z and x
    b2: float = option(0.95, ge=0, lt=1)  # second moment; Lion's momentum; SOAP's preconditioners too
    epsilon: float = option(1e-8, gt=0)  # added to the root of the second moment
    muon_momentum: float = option(0.95, ge=0, lt=1)  # Muon, Nesterov
    muon_iterations: int = option(5, ge=1)  # Newton-Schulz iterations
    muon_scale: str = option("adam_rms", choices=("adam_rms", "spectral", "max_ratio"))  # of updates; lm/optim/muon.py
    muon_split_heads: bool = option(False)  # orthogonalize each attention head's matrix alone
    muon_normalize: bool = option(False)  # NorMuon: divide by each output neuron's root mean square
    muon_b2: float = option(0.95, ge=0, lt=1)  # NorMuon second moment
    adafactor_decay: float = option(0.8, gt=0, le=1)  # second moment's b2 at step t is 1 - t^-adafactor_decay
    adafactor_clip: float = option(1.0, gt=0)  # root mean square of an update, per layer, at most
    adafactor_momentum: bool = option(False)  # keep a first moment (b1) too
    soap_every: int = option(10, ge=1)  # steps between refreshes of SOAP's eigenbases
    soap_max_size: int = option(10000, ge=1)  # SOAP: a larger side of a matrix is not rotated
    adam_learning_rate: float | None = option(None, gt=0)  # of AdamW's part in muon; None: learning_rate
    lr_multipliers: tuple[tuple[str, float], ...] = option((), ge=0)  # (path regex, factor), first match wins
    clip: str = option("global", choices=("global", "block"))  # one norm over all gradients, or one per block
    clip_norm: float | None = option(1.0, gt=0)  # largest gradient norm; None: no clipping
    accumulation_steps: int = option(1, ge=1)  # micro-batches per optimizer step
    ema_decay: float | None = option(None, gt=0, lt=1)  # of the parameters' moving average, used to evaluate; None: off


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Number types. The optimizer works in f32."""

    parameters: str = option("float32", choices=("float32", "bfloat16"))  # master weights
    compute: str = option("float32", choices=("float32", "bfloat16", "float16"))  # activations and matmul inputs
    moments: str = option("float32", choices=("float32", "bfloat16"))  # first moments; other optimizer state is f32
    output: str = option("float32", choices=("float32", "bfloat16"))  # logits handed out by generate
    matmul: str = option("default", choices=("default", "float8"))  # float8: linear layers, where the hardware has it
    stochastic_rounding: bool = option(False)  # of bfloat16 parameters after each update
    loss_scale_init: float = option(2.0**15, ge=1, le=2.0**24)  # float16: what the loss is multiplied by at first
    loss_scale_interval: int = option(2000, ge=1)  # float16: good steps in a row before the scale doubles


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """Sizes of the device mesh's axes, one of which may be -1 (whatever is left), and how they are used."""

    data: int = option(-1, ge=-1, identity=False)  # replicas of the parameters, each with its rows
    fsdp: int = option(1, ge=-1, identity=False)  # devices that share one replica's state, as `zero` says; rows too
    tensor: int = option(1, ge=-1, identity=False)  # devices that share each matmul: heads, feed-forward, vocabulary
    stage: int = option(1, ge=-1, identity=False)  # pipeline stages; accumulation_steps micro-batches flow through
    context: int = option(1, ge=-1, identity=False)  # devices that share each sequence
    expert: int = option(1, ge=-1, identity=False)  # devices that share the experts; each has its own rows
    slices: int = option(1, ge=-1, identity=False)  # TPU slices, replicas joined by the data centre's network
    zero: int = option(3, ge=0, le=3, identity=False)  # stage: 0 none, 1 optimizer state, 2 + gradients, 3 + parameters
    pipeline_repeats: int = option(1, ge=1, identity=False)  # 1: GPipe; more: circular, each stage has that many parts
    context_method: str = option("ring", choices=("ring", "ulysses"), identity=False)  # how attention sees all keys
    offload_optimizer: bool = option(False, identity=False)  # its state rests in the host's memory
    xla_flags: bool = option(True, identity=False)  # set those of lm/parallel/flags.py, where you set none yourself
    heartbeat_seconds: int = option(100, ge=1, identity=False)  # a host that was silent for so long is dead
    startup_seconds: int = option(300, ge=1, identity=False)  # to wait until all hosts have come


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int = option(200, ge=1, identity=False)  # also at the last step and on SIGTERM
    keep: int = option(2, ge=1, identity=False)  # newest checkpoints kept
    keep_every: int | None = option(None, ge=1, identity=False)  # those of multiples of this step too; None: no others
    keep_best: int = option(0, ge=0, identity=False)  # so many too that have the fewest validation bits per byte
    verify: bool = option(True, identity=False)  # check every array against its checksum when it is restored


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Validation during training."""

    every_steps: int = option(200, ge=1, identity=False)  # also at the last step
    tokens: int | None = option(65536, ge=1, identity=False)  # of the validation split; None: all of it
    stride: int | None = option(None, ge=1, identity=False)  # new tokens per window; None: the whole window
    batch_size: int | None = option(None, ge=1, identity=False)  # rows; None: data.batch_size
    tasks: tuple[str, ...] = option((), identity=False)  # names or files of tasks (lm/evaluate/formats.py), scored too
    tasks_data: str | None = option(None, identity=False)  # where the files of named tasks are, at any depth
    task_items: int | None = option(500, ge=1, identity=False)  # the first so many of each task; None: all


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a run reports, and how often."""

    every_steps: int = option(10, ge=1, identity=False)  # a line of metrics.jsonl
    tensorboard: bool = option(True, identity=False)  # events/ in the run's folder
    wandb: str | None = option(None, identity=False)  # a Weights & Biases project (extra `log`); None: not used
    sinks: tuple[str, ...] = option((), identity=False)  # "package.module:Name" of metric sinks of one's own
    sample_every_steps: int = option(200, ge=1, identity=False)  # samples/; also at the last step
    sample_prompts: tuple[str, ...] = option(("",), identity=False)  # one sample each
    sample_tokens: int = option(64, ge=1, identity=False)  # new tokens per sample
    profile: tuple[int, ...] = option((), ge=0, identity=False)  # (first, last) step of a profiler trace


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment."""

    seed: int = option(0, ge=0, lt=2**32)  # initialization, data order, dropout
    init_from: str | None = option(None, identity=False)  # a checkpoint whose parameters training starts from
    objective: str = option("next_token")  # `next_token`, or "package.module:Name"
    z_loss: float = option(0.0, ge=0)  # weight of log(Z)^2 of the output softmax, in training (PaLM)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: PrecisionConfig = PrecisionConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()


def default():
    """Return all fields at their defaults as a ConfigDict; assigning to an unknown name raises."""
    from ml_collections import ConfigDict

    # type_safe=False: `resolve` checks types with the field's path in the message. Tuples stay tuples.
    return ConfigDict(to_dict(Config()), type_safe=False, convert_dict=True).lock()


def to_dict(config) -> dict[str, Any]:
    """Return a config (or a section of it) as plain nested dicts."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):  # sections by name
            return {name: plain(part) for name, part in value.items()}
        return to_dict(value) if dataclasses.is_dataclass(value) else value

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def apply_overrides(config_dict, overrides: Sequence[tuple[str, str]], whole: type = Config) -> None:
    """Change a nested mapping in place from `[("model.num_layers", "8"), …]`.

    Args:
      config_dict: the mapping.
      overrides: (path, text) each.
      whole: the dataclass that the mapping follows.

    Raises:
      ConfigError: the path is unknown or the text does not read as the field's type.
    """
    for path, text in overrides:
        section, name, kind = _field(config_dict, path, whole)
        section[name] = parse(path, text, kind)


def set_fields(config_dict, values: Mapping[str, Any]) -> None:
    """Change a nested mapping in place from `{"model.num_layers": 8}`; `resolve` checks the values.

    Raises:
      ConfigError: a path is unknown.
    """
    for path, value in values.items():
        section, name, _ = _field(config_dict, path)
        section[name] = value


def _field(config_dict, path: str, whole: type = Config) -> tuple[Any, str, Any]:
    """Return the section that holds a field, the field's name in it, and its type."""
    *sections, name = path.split(".")
    section_type, section, named = whole, config_dict, None
    for depth, part in enumerate(sections):
        hints = dict.fromkeys(section, named) if named else field_types(section_type)
        if part not in hints or not (dataclasses.is_dataclass(hints[part]) or sections_of(hints[part])):
            raise unknown_field(".".join(sections[: depth + 1]), part, hints)
        section_type, section, named = hints[part], section[part], sections_of(hints[part])
    hints = dict.fromkeys(section, named) if named else field_types(section_type)
    if name not in hints:
        raise unknown_field(path, name, hints)
    if dataclasses.is_dataclass(hints[name]) or sections_of(hints[name]):
        inside = section[name] if sections_of(hints[name]) else field_types(hints[name])
        raise ConfigError(f"config.{path} is a section; set one of its fields: {', '.join(inside)}.")
    return section, name, hints[name]


def remat_names(policy: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names that a remat policy (other than `none`) keeps on the device, and those it offloads.

    `full` keeps none; `offload:` separates the two: `query,key,offload:attention_out,mlp_hidden`.
    """
    kept, _, offloaded = policy.partition("offload:")
    kept = "" if kept == "full" else kept
    return tuple(tuple(name.strip() for name in part.split(",") if name.strip()) for part in (kept, offloaded))
