"""The verbs `data` and `tokenizer`, through their command files."""

import argparse
import json

import pytest

from lm.commands import data as data_command
from lm.commands import tokenizer as tokenizer_command
from lm.errors import DamagedFileError, UsageError

CONFIG = """
from lm.config import default


def get_config():
    config = default()
    config.data.source = "text"
    config.data.path = {path!r}
    config.data.tokenizer_vocab_size = 300
    return config
"""


def run(command, *arguments, overrides=()):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([str(argument) for argument in arguments])
    args.overrides = list(overrides)
    command.run(args)


@pytest.fixture
def config_file(corpus, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(path=str(corpus)))
    return path


def test_data_build_makes_a_folder_and_prints_its_card(config_file, tmp_path, capsys):
    run(data_command, "build", "--config", config_file, "--out", tmp_path / "out", "--json")
    printed = json.loads(capsys.readouterr().out)
    run(data_command, "card", tmp_path / "out", "--json", "--verify")
    card = json.loads(capsys.readouterr().out)
    assert card["hash"] == printed["hash"]
    assert card["tokenizer"]["vocab_size"] == 300
    train = card["splits"]["train"]
    assert train["bytes_per_token"] == train["bytes"] / train["tokens"]
    assert train["document_tokens"]["min"] <= train["document_tokens"]["median"] <= train["document_tokens"]["max"]


def test_data_build_honours_overrides(config_file, tmp_path, capsys):
    overrides = [("data.tokenizer_vocab_size", "280")]
    run(data_command, "build", "--config", config_file, "--out", tmp_path / "out", "--json", overrides=overrides)
    assert json.loads(capsys.readouterr().out)["tokenizer"]["vocab_size"] == 280


def test_data_card_is_readable(folder, capsys):
    run(data_command, "card", folder)
    printed = capsys.readouterr().out
    assert "validation" in printed
    assert "bytes/token" in printed
    assert "sha256" in printed


def test_data_card_verify_refuses_changed_shards(config_file, tmp_path, capsys):
    run(data_command, "build", "--config", config_file, "--out", tmp_path / "out")
    shard = tmp_path / "out" / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[1100] ^= 1
    shard.write_bytes(content)
    run(data_command, "card", tmp_path / "out")
    with pytest.raises(DamagedFileError, match="sha256"):
        run(data_command, "card", tmp_path / "out", "--verify")


def test_tokenizer_train_then_info(corpus, tmp_path, capsys):
    out = tmp_path / "own.tiktoken"
    run(tokenizer_command, "train", "--input", corpus / "*.txt", "--vocab-size", "300", "--out", out, "--json")
    trained = json.loads(capsys.readouterr().out)
    run(tokenizer_command, "info", out, "--input", corpus / "6*.txt", corpus / "30.txt", "--json")
    info = json.loads(capsys.readouterr().out)
    assert info["sha256"] == trained["sha256"]
    assert info["vocab_size"] == 300
    assert info["documents"] == 2
    assert info["round_trip"] is True
    assert info["bytes_per_token"] == info["bytes"] / info["tokens"] > 1


def test_tokenizer_train_checks_the_name_before_the_work(tmp_path):
    with pytest.raises(UsageError, match=r"\.tiktoken"):
        run(tokenizer_command, "train", "--input", tmp_path / "none", "--vocab-size", "300", "--out", "own.json")


@pytest.mark.parametrize("command", [data_command, tokenizer_command])
def test_help_shows_an_example(command):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert "example" in parser.epilog
    assert command.HELP
