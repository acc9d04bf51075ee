"""A user's mistake is one line, the right exit code, and nothing touched."""

import json
import os

import pytest

from tests.commands.runs import files, write_config

BAD_CONFIG = {
    "typo": (["--config.model.num_layres=2"], ["config.model.num_layres", 'Did you mean "num_layers"?']),
    "unknown section": (["--config.modle.num_layers=2"], ["config.modle", 'Did you mean "model"?']),
    "whole section": (["--config.model=2"], ["config.model is a section"]),
    "no value": (["--config.model.num_layers"], ["--config.model.num_layers needs a value"]),
    "flag for a value": (["--config.model.num_layers", "--json"], ["--config.model.num_layers needs a value"]),
    "nan": (["--config.optimizer.learning_rate=nan"], ["config.optimizer.learning_rate=nan", "finite"]),
    "infinity": (["--config.optimizer.learning_rate=1e999"], ["config.optimizer.learning_rate=inf", "finite"]),
    "not a number": (["--config.optimizer.num_steps=ten"], ["config.optimizer.num_steps='ten'", "an integer"]),
    "bool for int": (["--config.model.num_layers=true"], ["config.model.num_layers=True", "an integer"]),
    "heads": (["--config.model.num_heads=3"], ["config.model.num_heads=3", "32"]),
    "choice": (["--config.optimizer.name=adam"], ["config.optimizer.name='adam'", "adamw, muon"]),
    "mesh": (["--config.parallel.fsdp=3"], ["config.parallel", "fsdp=3", "there are 8"]),
    "source": (["--config.data.source=stdlb"], ["config.data.source='stdlb'", 'Did you mean "stdlib"?']),
    "missing data": (["--config.data.path=/nowhere/at-all.txt"], ["/nowhere/at-all.txt"]),
    "missing start": (["--config.init_from=/nowhere/run"], ["/nowhere/run"]),
    "small vocabulary": (["--config.model.vocab_size=100"], ["config.model.vocab_size=100", "300"]),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_a_config_mistake_is_one_line_that_names_it_and_exit_code_2(train, tmp_path, case):
    arguments, expected = BAD_CONFIG[case]
    line = train(tmp_path / "run", *arguments).refusal(2)
    assert all(part in line for part in expected), line
    assert files(tmp_path) == {}


def test_a_tuple_field_can_be_set_from_the_command_line(lm, config):
    assert lm("inspect", "--config", config, "--config.log.sample_prompts=('a', 'b')").code == 0
    assert lm("inspect", "--config", config, "--config.log.sample_prompts=a").code == 0  # one stands for a tuple of one
    assert "a tuple" in lm("inspect", "--config", config, "--config.log.profile=a").refusal(2)


CONFIG_FILES = {
    "raises": ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
    "does not parse": ("def get_config(:\n", "SyntaxError"),
    "misspells a field": (
        "from lm.config import default\ndef get_config():\n    c = default()\n    c.model.num_layres = 2\n    return c\n",
        'sets "num_layres", which is not a field there. Did you mean "num_layers"?',
    ),
    "has no get_config": ("config = 1\n", "has no get_config()"),
    "returns nothing": ("def get_config():\n    pass\n", "returned None"),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_a_config_file_that_is_wrong_is_one_line_with_its_path(lm, tmp_path, case):
    content, expected = CONFIG_FILES[case]
    path = tmp_path / "wrong.py"
    path.write_text(content)
    line = lm("train", f"--config={path}", f"--workdir={tmp_path / 'run'}").refusal(2)
    assert str(path) in line and expected in line
    assert not (tmp_path / "run").exists()


def test_a_missing_config_file_is_refused(lm, tmp_path):
    assert "nowhere.py" in lm("train", "--config=nowhere.py", f"--workdir={tmp_path / 'run'}").refusal(2)


def test_an_unknown_verb_is_refused_with_the_nearest_one(lm):
    assert 'Did you mean "train"?' in lm("trian").refusal(2)


def test_a_missing_or_unknown_option_exits_2(lm, config):
    assert lm("train", f"--config={config}").code == 2
    assert lm("eval", "--checkpoint=x", "--nonsense").code == 2
    assert lm().code == 2
    assert "takes no --config.seed" in lm("eval", "--checkpoint=x", "--config.seed=1").refusal(2)


@pytest.mark.parametrize("where", ["below a file", "a file", "/proc"])
def test_a_workdir_that_cannot_be_written_is_refused_before_any_work(train, tmp_path, where):
    (tmp_path / "file").write_text("kept")
    workdir = {"below a file": tmp_path / "file" / "run", "a file": tmp_path / "file", "/proc": "/proc/lm-run"}[where]
    assert f'cannot write in "{workdir}"' in train(workdir).refusal(1)
    assert files(tmp_path) == {"file": b"kept"}


def test_a_data_cache_that_cannot_be_written_is_refused(train, tmp_path):
    (tmp_path / "file").write_text("kept")
    done = train(tmp_path / "run", f"--config.data.cache={tmp_path / 'file'}")
    assert "cannot write in" in done.refusal(1)


def test_checkpoints_that_cannot_be_written_end_the_run_with_one_line(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    done = train(tmp_path / "run")
    assert done.code == 1 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith(f'lm: cannot write in "{tmp_path / "run" / "checkpoints"}"')


@pytest.fixture
def shards(lm, config, tmp_path):
    """Token shards, and how to train on them."""
    assert lm("data", "build", f"--config={config}", f"--out={tmp_path / 'shards'}").code == 0
    return tmp_path / "shards", ["--config.data.source=shards", f"--config.data.path={tmp_path / 'shards'}"]


def test_a_truncated_shard_is_refused(train, shards, tmp_path):
    folder, arguments = shards
    path = next(folder.glob("train-*.bin"))
    os.truncate(path, path.stat().st_size - 10)
    line = train(tmp_path / "run", *arguments).refusal(1)
    assert str(path) in line and "truncated" in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00000.ends", "validation-00000.bin"])
def test_a_shard_whose_hash_changed_is_refused(train, shards, tmp_path, name):
    folder, arguments = shards
    content = bytearray((folder / name).read_bytes())
    content[-9 if name.endswith(".bin") else 0] ^= 1
    (folder / name).write_bytes(content)
    line = train(tmp_path / "run", *arguments).refusal(1)
    assert str(folder / name) in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_changed_manifest_and_a_missing_shard_are_refused(train, shards, tmp_path):
    folder, arguments = shards
    manifest = folder / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content.replace('"tokens": ', '"tokens": 1', 1))
    assert "manifest.json" in train(tmp_path / "run", *arguments).refusal(1)
    manifest.write_text(content)
    (folder / "train-00000.bin").unlink()
    assert "train-00000.bin" in train(tmp_path / "run", *arguments).refusal(2)


@pytest.mark.slow
def test_a_run_is_not_continued_with_another_config(train, run):
    before = files(run)
    line = train(run, "--config.optimizer.learning_rate=1e-3", "--config.model.d_ff=64").refusal(2)
    assert "config.optimizer.learning_rate" in line and "config.model.d_ff" in line
    assert "config.optimizer.num_steps" not in line
    assert files(run) == before


def test_a_run_is_not_continued_on_other_data(lm, run, corpus, tmp_path):
    text = tmp_path / "more.txt"
    text.write_text(corpus.read_text() + " and more words")
    config = write_config(tmp_path / "more.py", text, 20)
    before = files(run)
    done = lm("train", f"--config={config}", f"--workdir={run}")
    assert done.code == 2 and "other data" in done.err.splitlines()[-1] and "Traceback" not in done.err
    assert {**files(run), "log.txt": b""} == {**before, "log.txt": b""}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"config": {}}'])
def test_a_damaged_config_json_is_refused_by_every_verb(lm, train, run, content):
    (run / "config.json").write_text(content)
    for done in (train(run), *(lm(*verb, run) for verb in (["eval", "--checkpoint"], ["inspect"]))):
        assert "config.json" in done.refusal(1)


@pytest.mark.parametrize("verb", [["eval", "--checkpoint"], ["generate", "--checkpoint"], ["inspect"]])
def test_a_folder_without_a_run_and_a_step_that_is_not_there_are_refused(lm, finished, tmp_path, verb):
    assert "no run in" in lm(*verb, tmp_path).refusal(2)
    assert "no run in" in lm(*verb, tmp_path / "nowhere").refusal(2)
    line = lm(*verb, finished, "--step=7").refusal(2)
    assert "step 7" in line and "[16, 20]" in line


def test_eval_of_missing_text_or_split_is_refused(lm, finished, tmp_path):
    assert "nowhere.txt" in lm("eval", "--checkpoint", finished, "--data=nowhere.txt").refusal(2)
    assert "no test documents" in lm("eval", "--checkpoint", finished, "--data=test").refusal(2)
    (tmp_path / "empty.txt").write_text("")
    assert "no text" in lm("eval", "--checkpoint", finished, f"--data={tmp_path / 'empty.txt'}").refusal(2)


BAD_OPTIONS = {
    "eval": ["--stride=0", "--stride=33", "--sequence-length=-1", "--batch-size=0", "--batch-size=3", "--max-tokens=0"],
    "generate": [
        "--temperature=-1",
        "--temperature=nan",
        "--top-p=0",
        "--top-p=1.5",
        "--top-k=-1",
        "--max-new-tokens=0",
        "--num-return-sequences=0",
        "--seed=-1",
    ],
}


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, all_ in BAD_OPTIONS.items() for option in all_])
def test_option_values_out_of_range_are_refused_by_name(lm, finished, verb, option):
    line = lm(verb, "--checkpoint", finished, option).refusal(2)
    assert option.split("=")[0] in line


def test_a_run_whose_data_changed_is_not_evaluated_on_it(lm, run):
    info = json.loads((run / "config.json").read_text())
    info["data"]["manifest_hash"] = "0" * 64
    (run / "config.json").write_text(json.dumps(info))
    assert "changed" in lm("eval", "--checkpoint", run).refusal(2)
