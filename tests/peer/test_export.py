"""A trained run, exported: transformers computes its perplexity and its continuations, from its own files."""

import inspect
import json
import textwrap

import numpy as np
import pytest

from lm.__main__ import main
from tests.commands.runs import write_config, write_text

pytestmark = [pytest.mark.peer, pytest.mark.slow]

LENGTH = 32
GPT2 = {
    "norm": "layernorm", "activation": "gelu", "positions": "learned", "norm_epsilon": "1e-5",
    "bias": "('query','key','value','out','up','down','norm')", "num_layers": "2", "max_positions": "128",
}  # fmt: skip
LLAMA = {"num_kv_heads": "1", "tie_embeddings": "False", "norm_epsilon": "1e-5", "num_layers": "2"}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def exported(request, tmp_path_factory):
    """(run's folder, exported folder) of a few training steps."""
    folder = tmp_path_factory.mktemp(request.param)
    config = write_config(folder / "config.py", write_text(folder / "words.txt"), 20)
    fields = {"gpt2": GPT2, "llama": LLAMA}[request.param]
    overrides = [f"--config.model.{name}={value}" for name, value in fields.items()]
    assert main(["train", f"--config={config}", f"--workdir={folder / 'run'}", *overrides]) == 0
    assert main(["export", f"--checkpoint={folder / 'run'}", f"--out={folder / 'hf'}"]) == 0
    return folder / "run", folder / "hf"


@pytest.fixture(scope="module")
def loaded(exported):
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(exported[1], output_loading_info=True)
    assert not any(report.values()), report  # missing, unexpected, mismatched keys
    return model.eval(), transformers.AutoTokenizer.from_pretrained(exported[1])


def test_perplexity_on_a_real_text_is_transformers_own(exported, loaded, tmp_path, capsys):
    import torch

    model, tokenizer = loaded
    text = tmp_path / "textwrap.txt"
    text.write_text(inspect.getsource(textwrap)[:6000])
    capsys.readouterr()
    arguments = ["--data", str(text), "--stride", str(LENGTH), "--sequence-length", str(LENGTH), "--json"]
    assert main(["eval", "--checkpoint", str(exported[0]), *arguments]) == 0
    ours = json.loads(capsys.readouterr().out)
    ids = [tokenizer.bos_token_id, *tokenizer(text.read_text())["input_ids"], tokenizer.eos_token_id]
    nll, tokens = 0.0, 0
    for start in range(0, len(ids) - 1, LENGTH):
        window = torch.tensor(ids[start : start + LENGTH + 1])
        with torch.no_grad():
            logits = model(window[None, :-1]).logits[0]
        nll += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        tokens += len(window) - 1
    assert tokens == ours["tokens"]
    assert np.exp(nll / tokens) == pytest.approx(ours["perplexity"], rel=1e-4)


def test_greedy_continuations_of_64_tokens_are_identical(exported, loaded, capsys):
    import torch

    from lm.commands.opened import open_run
    from lm.infer.generate import Generator
    from lm.infer.sampling import SamplingConfig

    model, tokenizer = loaded
    opened = open_run(str(exported[0]))
    generator = Generator(opened.model, opened.tokenizer.vocab_size, opened.tokenizer.eot_id)
    prompt, new = opened.tokenizer.encode_document("ab").tolist(), 64
    ours = generator(opened.params, [prompt], max_new_tokens=new, sampling=SamplingConfig(temperature=0.0))[0]
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=new, do_sample=False)[0, len(prompt) :].tolist()
    assert theirs == ours and len(ours) == new
    assert tokenizer.decode(theirs) == opened.tokenizer.decode(ours)


def test_ids_of_the_padded_vocabulary_are_never_generated(loaded):
    import torch

    model, tokenizer = loaded
    assert model.config.vocab_size > len(tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer) :] *= 1000
        model.get_output_embeddings().weight[-1] += 10
    ids = model.generate(torch.tensor([[tokenizer.bos_token_id]]), max_new_tokens=16, do_sample=False)
    assert ids.max() < len(tokenizer)


def test_the_tokenizer_gives_our_ids(exported, loaded):
    from lm.tokenizer import load_tokenizer

    ours, tokenizer = load_tokenizer(str(exported[0] / "tokenizer.tiktoken")), loaded[1]
    for text in [inspect.getsource(textwrap), "naïve 日本語\n\n  x\t\r\n 12345 don't", ""]:
        assert tokenizer(text)["input_ids"] == ours.encode(text).tolist()
        assert tokenizer.decode(ours.encode(text).tolist()) == text
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == ours.eot_id
