"""The presets against the parameter counts that their authors publish (model cards and weight files)."""

import pytest

from lm.config import default
from lm.errors import ConfigError
from lm.model.flops import parameter_counts
from lm.presets import PRESETS, preset
from lm.resolve import resolve

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3.1_8b": 8_030_261_248,
    "llama3.1_70b": 70_553_706_496,
    "llama3.2_1b": 1_235_814_400,
    "llama3.2_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "mixtral_8x7b": 46_702_792_704,
    "qwen2_0.5b": 494_032_768,
    "qwen2_1.5b": 1_543_714_304,
    "qwen2_7b": 7_615_616_512,
    "qwen2_72b": 72_706_203_648,
    "qwen2.5_3b": 3_085_938_688,
    "qwen2.5_14b": 14_770_033_664,
    "qwen2.5_32b": 32_763_876_352,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen3_30b_a3b": 30_532_122_624,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_1b": 999_885_952,
    # Gemma 3's larger models also see; these are their language models' counts.
    "gemma3_4b": 3_880_263_168,
    "gemma3_12b": 11_766_034_176,
    "gemma3_27b": 27_009_346_304,
}
LADDER = {"llama_250k": 0.25e6, "llama_1m": 1e6, "llama_10m": 10e6, "llama_30m": 30e6, "llama_100m": 100e6}
LADDER |= {"llama_350m": 350e6, "llama_1b": 1e9, "llama_3b": 3e9}
FAST = ("gpt2", "llama_70b", "qwen3_30b_a3b", "gemma3_1b")


def counts(name: str) -> dict[str, int]:
    config = default()
    config.model.update(preset(name))
    return parameter_counts(resolve(config).model)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED])
def test_a_public_shape_has_the_published_number_of_parameters(name):
    assert counts(name)["total"] == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", LADDER)
def test_a_rung_of_the_ladder_is_as_large_as_its_name(name):
    assert counts(name)["total"] == pytest.approx(LADDER[name], rel=0.11)


def test_every_preset_is_checked_and_a_typo_is_refused():
    assert set(PRESETS) == set(PUBLISHED) | set(LADDER)
    with pytest.raises(ConfigError, match="llama_70b"):
        preset("llama_70")


def test_a_mixture_counts_what_one_token_uses():
    """Mixtral: 12.9 billion of 46.7; Qwen3-30B-A3B: 3.3 of 30.5 (their model cards)."""
    assert counts("mixtral_8x7b")["active"] == pytest.approx(12.9e9, rel=0.01)
    assert counts("qwen3_30b_a3b")["active"] == pytest.approx(3.3e9, rel=0.02)
