"""`lm coord-check` on the command line."""

import json

import pytest


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--widths", "64"), "--widths 64: expected two or more increasing numbers"),
        (("--widths", "128,64"), "--widths 128,64: expected two or more increasing numbers"),
        (("--widths", "32,48,72"), "config.model.num_heads=2 at d_model=32 would become 4.5"),
        (("--optimizer", "adamw,muom"), "--optimizer muom: expected some of adamw, muon"),
        (("--steps", "0"), "--steps 0: expected 1 or more"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(lm, config, tmp_path, arguments, says):
    assert says in lm("coord-check", "--config", config, "--out", tmp_path, *arguments).refusal(2)


@pytest.mark.slow
def test_a_wrong_parametrization_exits_with_1_and_names_the_worst_activation(lm, config, tmp_path):
    """An initialization that does not know the width is wrong under muP."""
    wrong = "--config.model.mup_base_width=32", "--config.model.initializer=normal", "--config.model.qk_norm=True"
    arguments = "--widths", "32,128", "--steps", 1, "--seeds", 1, "--out", tmp_path, "--json", *wrong
    done = lm("coord-check", "--config", config, *arguments)
    assert done.code == 1
    (result,) = json.loads(done.out)["results"]
    assert not result["passed"] and result["plot"] == str(tmp_path / "coord_check_adamw.png")
    assert (tmp_path / "coord_check_adamw.png").read_bytes().startswith(b"\x89PNG")
    rows = result["parametrizations"]["muP"]
    worst = max((row for row in rows if row["judged"]), key=lambda row: abs(row["slope"]))
    last = done.err.splitlines()[-1]
    assert last.startswith("lm: muP fails the coordinate check: adamw: ")
    assert worst["activation"] in last and f"{worst['slope']:+.2f}" in last
