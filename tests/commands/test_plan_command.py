"""`lm plan`: text for people, JSON for machines, one line for a mistake."""

import json

import pytest


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--topology", "v5x:4x4"], 'topology "v5x:4x4"'),
        (["--topology", "2*h200:8"], "GPUs have no slices"),
        (["--topology", "here", "--scaling", "16-64"], "--scaling knows the pods of TPUs"),
        (["--topology", "here", "--scaling", "1-2"], "expected a range of chips within 16-4096"),
        (["--topology", "here", "--scaling", "lots"], "expected a range of chips within 16-4096"),
        (["--topology", "here", "--out", "plot.png"], "--out is the plot of --scaling"),
        (["--topology", "here", "--scaling", "16-64", "--out", "plot.txt"], "ends in .png or .svg"),
        (["--topology", "here", "--search"], "no published figures"),
        (["--topology", "here", "--config.parallel.fsdp=3"], "fsdp=3"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(lm, config, arguments, says):
    assert says in lm("plan", f"--config={config}", *arguments).refusal(2)


def test_formulas_alone_take_no_compiler(lm, config):
    done = lm("plan", f"--config={config}", "--topology=here", "--no-compile", "--json")
    assert done.code == 0 and done.err == ""
    plan = json.loads(done.out)
    assert plan["devices"] == 8 and plan["fits"] is None and "compiled" not in plan and "prediction" not in plan
    parts = plan["bytes_per_device"]
    assert parts["total"] > parts["parameters"] + parts["optimizer"] > 0


def test_this_machines_step_is_compiled_and_shown_beside_the_formulas(lm, config):
    done = lm("plan", f"--config={config}", "--topology=here", "--config.parallel.fsdp=4")
    assert done.code == 0 and done.err.startswith("lm: compiling for here")
    lines = done.out.splitlines()
    assert lines[0] == f"{config} on here: 8 x cpu; data 2 x fsdp 4; ZeRO 3, remat none, 1 micro-batches"
    for row in ("peak", "reduce-scatter", "all-gather"):
        (line,) = (line.split() for line in lines if line.split()[:1] == [row])
        assert all(float(part) >= 0 for part in line if part.replace(".", "").isdigit())
    assert "the device's memory is not known" in done.out


def test_the_comparison_is_a_table_over_stages_and_policies(lm, config):
    done = lm("plan", f"--config={config}", "--topology=here", "--compare", "--json")
    plans = json.loads(done.out)["plans"]
    assert {(plan["zero"], plan["remat"]) for plan in plans} >= {(0, "none"), (3, "full"), (1, "dots")}
    assert all("offload" not in plan["remat"] for plan in plans), "a CPU's memory is the host's"
    text = lm("plan", f"--config={config}", "--topology=here", "--compare").out
    assert [line.split()[0] for line in text.splitlines()[3:5]] == ["none", "dots"]
