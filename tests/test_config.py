"""Every refusal names the field's path, the value and what is accepted."""

import dataclasses
import json

import pytest

from lm.capabilities import AttentionSupport, Capabilities
from lm.config import Config, ModelConfig, apply_overrides, default, to_dict
from lm.errors import ConfigError
from lm.resolve import fingerprint, resolve, with_vocabulary


def changed(**overrides):
    config = default()
    apply_overrides(config, [(path.replace("__", "."), value) for path, value in overrides.items()])
    return config


def refused(config, *needles, devices=1, capabilities=None):
    with pytest.raises(ConfigError) as error:
        resolve(config, devices, capabilities)
    message = str(error.value)
    assert "\n" not in message
    for needle in needles:
        assert needle in message, message
    assert error.value.exit_code == 2


def test_defaults_resolve_and_fill_in_derived_sizes():
    config = resolve(default())
    assert config.model.num_kv_heads == config.model.num_heads == 4
    assert config.model.head_dim == 64
    assert config.model.d_ff == 704  # 8/3 of 256, up to a multiple of 64
    assert config.model.attention == "blockwise"
    assert config.parallel.data == 1


def test_every_field_has_a_comment_beside_it():
    import inspect

    import lm.config

    source = inspect.getsource(lm.config)
    for section in [Config, *(type(v) for v in vars(Config()).values() if dataclasses.is_dataclass(v))]:
        for field in dataclasses.fields(section):
            if not dataclasses.is_dataclass(field.default):
                (line,) = [
                    text for text in source.splitlines() if text.startswith(f"    {field.name}: ") and "option(" in text
                ][:1]
                assert "  # " in line, line


def test_an_unknown_key_is_refused_with_the_nearest_name_on_the_command_line():
    with pytest.raises(ConfigError, match=r'config\.model\.num_layer is not a field\. Did you mean "num_layers"\?'):
        changed(model__num_layer="8")


def test_an_unknown_key_in_plain_data_is_refused():
    plain = to_dict(Config())
    plain["optimizer"]["learning_rat"] = 1.0
    refused(plain, "config.optimizer.learning_rat", 'Did you mean "learning_rate"?')


def test_an_unknown_section_is_refused():
    with pytest.raises(ConfigError, match=r'Did you mean "model"'):
        changed(modle__num_layers="8")


def test_a_section_cannot_be_assigned():
    with pytest.raises(ConfigError, match=r"config\.model is a section"):
        changed(model="gpt2")


def test_a_typo_in_a_config_file_raises_at_the_assignment():
    config = default()
    with pytest.raises(AttributeError, match="num_layers"):
        config.model.num_layer = 3


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_nan_and_infinities_are_refused(value):
    refused(changed(optimizer__learning_rate=value), "config.optimizer.learning_rate", "finite")


def test_nan_assigned_in_a_file_is_refused():
    config = default()
    config.optimizer.learning_rate = float("nan")
    refused(config, "config.optimizer.learning_rate=nan", "finite")


def test_a_bool_is_not_an_int():
    config = default()
    config.model.num_layers = True
    refused(config, "config.model.num_layers=True", "an integer")


def test_an_int_is_a_float_but_a_float_is_not_an_int():
    assert resolve(changed(optimizer__learning_rate="1")).optimizer.learning_rate == 1.0
    refused(changed(model__num_layers="2.5"), "config.model.num_layers=2.5", "an integer")


def test_a_text_for_a_number_is_refused():
    with pytest.raises(ConfigError, match=r"config\.model\.num_layers='many': expected an integer"):
        changed(model__num_layers="many")


@pytest.mark.parametrize(
    ("path", "value", "needle"),
    [
        ("optimizer__learning_rate", "0", "more than 0"),
        ("optimizer__learning_rate", "-1", "more than 0"),
        ("model__dropout", "1.0", "less than 1"),
        ("model__num_layers", "0", "at least 1"),
        ("model__window", "(0,None)", "at least 1"),
        ("data__tokenizer_vocab_size", "100", "at least 257"),
    ],
)
def test_numbers_out_of_range_are_refused(path, value, needle):
    refused(changed(**{path: value}), f"config.{path.replace('__', '.')}", needle)


def test_a_choice_that_is_not_one_is_refused_with_the_nearest():
    refused(changed(model__activation="swigul"), "config.model.activation='swigul'", "geglu", 'Did you mean "swiglu"?')


def test_heads_that_do_not_divide_are_refused():
    refused(changed(model__num_heads="3"), "config.model.num_heads=3", "d_model=256")
    refused(changed(model__num_kv_heads="3"), "config.model.num_kv_heads=3", "num_heads=4")


def test_an_odd_head_width_cannot_rotate():
    refused(changed(model__head_dim="33"), "config.model.head_dim=33", "even")


def test_a_pattern_repeats_over_the_layers_and_may_end_early():
    refused(changed(model__window="()"), "config.model.window", "one value or more")
    model = resolve(changed(model__window="(8, 8, None)", model__rope_base="(1e4, 1e6)")).model
    assert [model.per_layer("window", i) for i in range(4)] == [8, 8, None, 8]
    assert [model.per_layer("rope_base", i) for i in range(4)] == [1e4, 1e6, 1e4, 1e6]
    assert model.period == 6
    assert resolve(changed(model__window="8")).model.window == (8,)


def test_context_extension_needs_its_original_length():
    refused(changed(model__rope_factor="8.0"), "config.model.rope_factor", "rope_scaling")
    refused(changed(model__rope_factor="8.0", model__rope_scaling="yarn"), "rope_original_length")
    assert resolve(changed(model__rope_factor="8.0", model__rope_scaling="linear")).model.rope_factor == (8.0,)


def test_fields_that_contradict_each_other_are_refused():
    refused(changed(model__bias="norm"), "config.model.bias", "layernorm")
    refused(changed(model__bias="('querry',)"), "config.model.bias", "query")
    refused(changed(model__initializer="mup"), "mup_base_width")
    refused(changed(model__num_experts="4", model__experts_per_token="5"), "experts_per_token", "num_experts=4")
    refused(changed(model__experts="dense"), "config.model.experts", "ragged")


def test_sequences_and_heads_that_context_parallelism_cannot_divide_are_refused():
    context = {"parallel__data": "1", "parallel__context": "4"}
    refused(
        changed(data__sequence_length="36", **context), "config.data.sequence_length=36", "multiple of 8", devices=4
    )
    stages = changed(data__sequence_length="32", data__stages="((0, 64, 4), (10, 64, 32))", **context)
    refused(stages, "config.data.stages=", "multiple of 8", "not 4", devices=4)
    ulysses = context | {"parallel__context_method": "ulysses"}
    refused(
        changed(model__num_heads="2", **ulysses), 'context_method="ulysses"', "2 heads", "context=4", "ring", devices=4
    )
    shared = changed(parallel__tensor="2", **ulysses)
    refused(shared, 'context_method="ulysses"', "2 heads that a device has", "tensor=2", devices=8)
    assert resolve(changed(model__num_kv_heads="1", parallel__tensor="2", **ulysses), 8)  # its heads stay together
    assert resolve(changed(model__num_heads="2", **context), 4).parallel.context_method == "ring"
    assert resolve(changed(data__sequence_length="36", parallel__context="2"), 2)


def test_a_backend_without_a_log_sum_exp_is_refused_in_a_ring():
    gpu = Capabilities(platform="gpu", device_kind="NVIDIA H200")
    options = {"data__document_mask": "False", "precision__compute": "bfloat16", "parallel__context": "2"}
    named = options | {"model__attention": "cudnn"}
    refused(changed(**named), "'cudnn' cannot honour config.parallel.context=2 (ring", devices=2, capabilities=gpu)
    assert resolve(changed(**options), 2, gpu).model.attention == "blockwise"
    for ulysses in (options, named):
        config = changed(parallel__context_method="ulysses", **ulysses)
        assert resolve(config, 2, gpu).model.attention == "cudnn"


def test_a_mesh_that_does_not_fit_is_refused():
    refused(changed(parallel__data="3"), "config.parallel", "3 devices", "there are 8", devices=8)
    refused(changed(parallel__data="-1", parallel__fsdp="3"), "multiple of 3", "there are 8", devices=8)
    refused(changed(parallel__data="-1", parallel__fsdp="-1"), "only one axis may be -1")
    refused(changed(parallel__data="0"), "config.parallel.data=0")
    config = resolve(changed(parallel__fsdp="4"), devices=8)
    assert (config.parallel.data, config.parallel.fsdp) == (2, 4)


def test_a_batch_that_does_not_divide_is_refused():
    refused(changed(data__batch_size="12"), "config.data.batch_size=12", "multiple of 8", devices=8)
    refused(changed(optimizer__accumulation_steps="3"), "config.data.batch_size=16", "accumulation_steps=3")


@pytest.mark.parametrize(
    ("lacking", "overrides", "setting"),
    [
        ("segment_ids", {}, "document_mask"),
        ("window", {"model__window": "(8,)", "data__document_mask": "False"}, "window=(8,)"),
        ("softcap", {"model__attention_softcap": "50.0", "data__document_mask": "False"}, "attention_softcap=50.0"),
    ],
)
def test_an_attention_backend_that_cannot_honour_the_mask_is_refused(lacking, overrides, setting):
    poor = Capabilities(attention={"fast": dataclasses.replace(AttentionSupport(), **{lacking: False})})
    refused(changed(model__attention="fast", **overrides), "'fast' cannot honour", setting, capabilities=poor)


def test_an_attention_backend_of_another_platform_is_refused():
    tpu_only = Capabilities(platform="cpu", attention={"fast": AttentionSupport(platforms=("tpu",))})
    refused(changed(model__attention="fast"), "runs on tpu, not on cpu", capabilities=tpu_only)


def test_an_attention_backend_that_lacks_the_compute_type_is_refused():
    no_fp16 = Capabilities(attention={"fast": AttentionSupport(dtypes=("float32", "bfloat16"))})
    fp16 = changed(model__attention="fast", precision__compute="float16")
    what = "'fast' cannot honour config.precision.compute='float16' (it takes float32, bfloat16)"
    refused(fp16, what, capabilities=no_fp16)


def test_an_unknown_attention_backend_is_refused():
    refused(changed(model__attention="referense"), "config.model.attention", 'Did you mean "reference"?')


def test_a_source_without_its_path_is_refused():
    refused(changed(data__source="text"), "config.data.path=None", '"text" needs')
    refused(changed(data__source="txt"), "config.data.source='txt'", 'Did you mean "text"?')


def test_an_evaluation_batch_that_does_not_divide_is_refused():
    refused(changed(eval__batch_size="3"), "config.eval.batch_size=3", "multiple of the 8", devices=8)


def test_a_seed_beyond_32_bits_is_refused_because_keys_would_repeat():
    refused(changed(seed=str(2**32)), "config.seed=4294967296", "less than")


def test_splits_that_leave_nothing_to_train_on_are_refused():
    refused(
        changed(data__validation_fraction="0.5", data__test_fraction="0.5"),
        "config.data.validation_fraction",
        "less than 1",
    )


def test_warmup_must_end_before_training_does():
    refused(changed(optimizer__warmup_steps="400"), "config.optimizer.warmup_steps=400", "num_steps=400")


def test_learned_positions_must_reach_the_sequence_length():
    refused(changed(model__positions="learned", model__max_positions="64"), "config.model.max_positions=64", "128")


def test_overrides_read_as_the_fields_type():
    config = changed(
        model__tie_embeddings="false",
        model__logit_softcap="None",
        optimizer__lr_multipliers="(('embed', 0.5),)",
        data__path="None",
        data__tokenizer="gpt2",
        log__sample_prompts="('a', 'b')",
    )
    resolved = resolve(config)
    assert resolved.model.tie_embeddings is False
    assert resolved.model.logit_softcap is None
    assert resolved.optimizer.lr_multipliers == (("embed", 0.5),)
    assert resolved.data.path is None
    assert resolved.data.tokenizer == "gpt2"
    assert resolved.log.sample_prompts == ("a", "b")


def test_a_resolved_config_survives_json():
    config = resolve(changed(model__window="(8, None)"))
    assert resolve(json.loads(json.dumps(to_dict(config)))) == config


def test_the_fingerprint_ignores_paths_logging_cadences_and_the_mesh():
    base = fingerprint(resolve(default()))
    same = changed(log__every_steps="1", checkpoint__keep="9", data__cache="/somewhere", data__prefetch="5")
    assert fingerprint(resolve(same)) == base
    assert fingerprint(resolve(default(), devices=8)) == base
    assert len(base) == 64


def test_the_fingerprint_sees_what_changes_numbers():
    base = fingerprint(resolve(default()))
    assert fingerprint(resolve(changed(seed="1"))) != base
    assert fingerprint(resolve(changed(optimizer__learning_rate="2e-3"))) != base
    assert fingerprint(resolve(default()), manifest_hash="a") != fingerprint(resolve(default()), manifest_hash="b")


def test_the_fingerprint_omits_defaults_so_that_a_new_field_renames_no_run():
    from lm.resolve import canonical

    assert canonical(resolve(default())) == {}
    assert canonical(resolve(changed(model__num_layers="8"))) == {"model": {"num_layers": 8}}


def test_the_model_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().num_layers = 3


@pytest.mark.parametrize(
    ("stages", "needle"),
    [
        ("((20,8,16),(10,8,16))", "ascend"),
        ("((10,8,16),(10,8,32))", "ascend"),
        ("((400,8,16),)", "num_steps - 1 = 399"),
        ("((10,6,16),)", "multiple of 4"),
        ("((10,0,16),)", "multiple of 4"),
        ("((10,8,24),)", "divides data.sequence_length=128"),
        ("((10,8,256),)", "divides data.sequence_length=128"),
        ("((10,8,0),)", "divides data.sequence_length=128"),
        ("((10,8),)", "an integer, an integer, an integer"),
        ("(10,8,16)", "an integer, an integer, an integer"),
        ("((-1,8,16),)", "at least 0"),
    ],
)
def test_a_batch_schedule_that_cannot_be_is_refused(stages, needle):
    config = changed(data__stages=stages, data__batch_size="16", optimizer__accumulation_steps="2")
    refused(config, "config.data.stages", needle, devices=2)


def test_a_batch_schedule_begins_with_the_batch_size_unless_it_says_otherwise():
    stages = ((200, 32, 64),)
    config = resolve(changed(data__stages=str(stages)))
    assert config.data.schedule == ((0, 16, 128), (200, 32, 64))
    assert resolve(changed(data__stages="((0,8,64),(200,32,128))")).data.schedule == ((0, 8, 64), (200, 32, 128))
    assert fingerprint(config) != fingerprint(resolve(changed()))
    assert resolve(json.loads(json.dumps(to_dict(config)))) == config


def test_a_sink_that_is_no_name_is_refused():
    refused(changed(log__sinks="('mlflow',)"), "config.log.sinks='mlflow'", "package.module:Name")


def test_layers_are_unrolled_on_a_cpu_unless_remat_would_be_undone():
    def unroll(platform="cpu", **overrides):
        config = changed(**{f"model__{name}": value for name, value in overrides.items()})
        return resolve(config, capabilities=Capabilities(platform=platform)).model.scan_unroll

    assert unroll(num_layers="12") == 6
    assert unroll(num_layers="8", remat="full") == 1
    assert unroll("tpu", num_layers="8") == 1
    assert unroll(num_layers="8", scan_unroll="2", remat="full") == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"parallel__tensor": "3", "model__num_heads": "8"}, ["parallel.tensor=3", "model.num_heads=8"]),
        (
            {"parallel__tensor": "4", "model__num_heads": "12", "model__num_kv_heads": "3", "model__d_model": "96"},
            ["num_kv_heads=3"],
        ),
        ({"parallel__tensor": "2", "model__d_ff": "129"}, ["model.d_ff=129"]),
        ({"parallel__expert": "2"}, ["parallel.expert=2", "num_experts"]),
        ({"parallel__expert": "2", "model__num_experts": "3"}, ["parallel.expert=2", "num_experts=3"]),
        ({"parallel__pipeline_repeats": "2"}, ["pipeline_repeats=2", "no pipeline"]),
        ({"parallel__stage": "2", "model__num_layers": "3"}, ["parallel.stage=2", "num_layers=3"]),
        (
            {"parallel__stage": "2", "model__num_layers": "4", "parallel__pipeline_repeats": "4"},
            ["2 stages times 4 repeats"],
        ),
        ({"parallel__stage": "2", "model__num_layers": "4"}, ["accumulation_steps=1", "parallel.stage=2"]),
        ({"parallel__offload_optimizer": "True"}, ["offload_optimizer", "cpu"]),
    ],
)
def test_models_that_do_not_divide_over_the_mesh_are_refused(overrides, words):
    devices = 12
    refused(changed(data__batch_size="24", **overrides), *words, devices=devices)


def test_a_vocabulary_that_does_not_divide_is_refused_when_the_tokenizer_is_known():
    config = resolve(
        changed(parallel__tensor="3", model__num_heads="6", model__d_ff="96", model__d_model="96"), devices=3
    )
    with pytest.raises(ConfigError, match="multiple of parallel.tensor=3"):
        with_vocabulary(config, 500)
