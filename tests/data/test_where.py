"""`lm data where`: every token of a batch is traced back to its document."""

import argparse
import json
import os

import numpy as np
import pytest

from lm.commands import data as data_command
from lm.config import DataConfig
from lm.data.build import build
from lm.data.dataset import MANIFEST, manifest_hash, open_data
from lm.data.loader import Loader
from lm.data.where import where
from lm.errors import ConfigError, DamagedFileError, UsageError
from tests.data.conftest import domain_text, words

CONFIG = """
from lm.config import default


def get_config():
    config = default()
    config.data.source = "text"
    config.data.path = {path!r}
    config.data.tokenizer_vocab_size = 300
    config.data.sequence_length = 32
    config.data.batch_size = 4
    config.optimizer.num_steps = 50
    return config
"""

OPTIONS = {
    "plain": {"sequence_length": 32, "batch_size": 5},
    "mixture": {
        "sequence_length": 32,
        "batch_size": 5,
        "mixture": ((0, "wiki", 1.0), (0, "books", 2.0), (6, "code", 1.0)),
    },
    "stages": {"sequence_length": 32, "stages": ((0, 3, 8), (4, 4, 16), (7, 2, 32))},
}


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_token_of_a_batch_is_at_the_place_named_in_its_document(domains_folder, options, packing):
    loader = Loader(domains_folder, packing=packing, **options)
    tokenizer = loader.dataset.tokenizer
    for step in (0, 3, 5, 8, 40):
        batch = loader.batch(step)
        for row in where(loader, step):
            assert sum(piece["tokens"] for piece in row["documents"]) == batch["weights_BT"][row["row"]].sum()
            for piece in row["documents"]:
                domain, number = piece["id"].split("/")
                text = domain_text(domain, int(number))
                assert (piece["source"], row["domain"]) == ("made up", domain)
                document = tokenizer.encode_document(text)
                own = document[piece["token"] : piece["token"] + piece["tokens"]]
                read = batch["inputs_BT"][row["row"], piece["column"] : piece["column"] + piece["tokens"]]
                np.testing.assert_array_equal(read, own)
                assert text.encode()[piece["byte"] :].startswith(piece["text"].encode())


def test_some_rows_alone_are_those_of_the_whole_batch(domains_folder):
    loader = Loader(domains_folder, **OPTIONS["mixture"])
    assert where(loader, 7, [3, 1]) == [where(loader, 7)[3], where(loader, 7)[1]]
    with pytest.raises(IndexError):
        where(loader, 7, [5])


def test_a_piece_of_a_single_file_counts_bytes_from_the_files_beginning(tmp_path):
    text = "é" + words(3000, 1)
    (tmp_path / "whole.txt").write_text(text)
    config = DataConfig(
        source="text", path=str(tmp_path / "whole.txt"), tokenizer_vocab_size=300, validation_fraction=0.3, workers=1
    )
    build(config, str(tmp_path / "data"))
    loader = Loader(str(tmp_path / "data"), sequence_length=16, batch_size=4, split="validation")
    for row in where(loader, 3):
        for piece in row["documents"]:
            assert (piece["id"], piece["source"]) == ("whole.txt", "text")
            assert piece["byte"] >= 0.69 * len(text.encode())
            assert text.encode()[piece["byte"] :].startswith(piece["text"].encode())


def test_a_changed_sidecar_is_refused(config, tmp_path):
    build(config, str(tmp_path / "data"))
    path = tmp_path / "data" / "train-00000.docs"
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the time in gzip's header, which unpacking does not look at
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"train-00000\.docs"):
        where(Loader(str(tmp_path / "data"), **OPTIONS["plain"]), 0)


def run(*arguments, overrides=()):
    parser = argparse.ArgumentParser()
    data_command.add_arguments(parser)
    args = parser.parse_args(["where", *map(str, arguments)])
    args.overrides = list(overrides)
    data_command.run(args)


@pytest.fixture
def config_file(corpus, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(path=str(corpus)))
    return path


def test_the_step_is_that_of_the_metrics(config_file, folder, capsys):
    run("--config", config_file, "--manifest", folder, "--step", 9, "--row", 2, "--json")
    found = json.loads(capsys.readouterr().out)
    loader = Loader(folder, sequence_length=32, batch_size=4)
    assert found["rows"] == where(loader, 8, [2])  # the ninth step reads batch 8
    assert (found["step"], found["hash"]) == (9, loader.manifest_hash)
    run("--config", config_file, "--manifest", folder, "--step", 9)
    assert ".txt, from its token" in capsys.readouterr().out


def write_run(folder, workdir, hash_):
    from lm.config import default, to_dict
    from lm.resolve import resolve

    config = default()
    config.data.source, config.data.path = "shards", folder
    config.data.sequence_length, config.data.batch_size = 16, 3
    info = {"config": to_dict(resolve(config)), "fingerprint": "0", "data": {"manifest_hash": hash_}}
    (workdir / "config.json").write_text(json.dumps(info))


def test_a_run_knows_its_config_and_data(folder, sharded_folder, tmp_path, capsys):
    write_run(folder, tmp_path, open_data(folder).hash)
    run("--run", tmp_path, "--step", 1, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == where(Loader(folder, sequence_length=16, batch_size=3), 0)
    with pytest.raises(ConfigError, match="is not what"):
        run("--run", tmp_path, "--manifest", sharded_folder, "--step", 1)


def test_a_folder_without_sidecars_names_shards_and_documents(config, tmp_path, capsys):
    build(config, str(tmp_path / "data"))
    manifest = json.loads((tmp_path / "data" / MANIFEST).read_text())
    for split in manifest["splits"].values():
        for entry in split["shards"]:
            del entry["docs_sha256"]
            os.remove(tmp_path / "data" / entry["file"].replace(".bin", ".docs"))
    assert manifest_hash(manifest) == manifest["hash"]  # as an older build's
    (tmp_path / "data" / MANIFEST).write_text(json.dumps(manifest))
    write_run(str(tmp_path / "data"), tmp_path, manifest["hash"])
    run("--run", tmp_path, "--step", 1)
    printed = capsys.readouterr()
    assert "tokens of document " in printed.out and "train-00000.bin" in printed.out
    assert printed.err.count("\n") == 1 and "does not say where" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "1"], "--run WORKDIR or --config FILE"),
        (["--config", "CONFIG", "--step", "0"], "steps 1 to 50"),
        (["--config", "CONFIG", "--step", "51"], "steps 1 to 50"),
        (["--config", "CONFIG", "--manifest", "FOLDER", "--step", "1", "--row", "4"], "rows 0 to 3"),
        (["--run", "nowhere", "--step", "1"], "no run in"),
    ],
)
def test_what_is_not_there_is_one_line(config_file, folder, arguments, message):
    given = {"CONFIG": config_file, "FOLDER": folder}
    with pytest.raises(UsageError, match=message):
        run(*(given.get(argument, argument) for argument in arguments))
