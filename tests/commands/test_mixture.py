"""A run on a mixture of domains, from its first line to the documents of one of its steps."""

import json

import numpy as np
import pytest

from lm.commands.common import load_config
from lm.data.build import make_tokenizer
from lm.data.dataset import open_data
from lm.data.loader import Loader
from lm.resolve import resolve
from lm.tokenizer import load_tokenizer
from tests.commands.runs import records
from tests.data.conftest import build_domains, domain_text

STEPS = 20  # the shared config's


@pytest.mark.slow
def test_a_run_on_a_mixture_says_what_it_reads_how_each_domain_does_and_where_a_batch_is_from(
    lm, train, config, tmp_path
):
    (tmp_path / "data").mkdir()
    folder = build_domains(str(tmp_path / "data"), make_tokenizer(resolve(load_config(str(config))).data))
    given = ["--config.data.source=shards", f"--config.data.path={folder}"]
    mixture = "--config.data.mixture=((0,'wiki',3),(0,'code',1),(10,'code',1))"
    done = train(tmp_path / "run", *given, mixture)
    assert done.code == 0, done.err
    (line,) = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "  mixture" in line]
    rows = STEPS * 16
    assert "mixture in 2 stages: " in line
    assert f"wiki {120 / rows:.1%}" in line and f"code {200 / rows:.1%}" in line

    last = records(tmp_path / "run", "eval")[-1]
    domains = [name.removeprefix("loss/") for name in last if name.startswith("loss/")]
    assert set(domains) == set(open_data(folder).domains("validation")) and len(domains) > 1
    assert min(last[f"loss/{d}"] for d in domains) < last["loss"] < max(last[f"loss/{d}"] for d in domains)

    inspected = json.loads(lm("inspect", tmp_path / "run", "--json").out)
    loader = Loader(
        folder,
        sequence_length=32,
        batch_size=16,
        mixture=((0, "wiki", 3.0), (0, "code", 1.0), (10, "code", 1.0)),
        seed=0,
    )
    assert inspected["data"]["mixture"] == loader.mixture_hash

    found = json.loads(lm("data", "where", "--run", tmp_path / "run", "--step", 7, "--json").out)
    batch, tokenizer = loader.batch(6), load_tokenizer(str(tmp_path / "run" / "tokenizer.tiktoken"))
    for row in found["rows"]:
        for piece in row["documents"]:
            domain, number = piece["id"].split("/")
            tokens = tokenizer.encode_document(domain_text(domain, int(number)))[piece["token"] :][: piece["tokens"]]
            first = piece["column"]
            np.testing.assert_array_equal(batch["inputs_BT"][row["row"], first : first + len(tokens)], tokens)


def test_a_domain_that_is_not_there_is_refused_before_anything_is_compiled(train, config, tmp_path):
    done = train(tmp_path / "run", "--config.data.mixture=((0,'wiki',1.0),)")
    assert "has no domains" in done.err.splitlines()[-1] and done.code == 2
