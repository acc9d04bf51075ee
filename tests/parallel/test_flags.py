"""Which compiler flags are set, and where."""

from lm.parallel import flags


def on_machine(monkeypatch, *, tpu: bool = False, gpus: bool = False, version: str = "") -> dict[str, str]:
    monkeypatch.setattr(flags, "_has_tpu", lambda: tpu)
    monkeypatch.setattr(flags, "_has_several_gpus", lambda: gpus)
    monkeypatch.setattr(flags, "_version", lambda package: version or dict(flags.TESTED.values())[package])
    environment = {"XLA_FLAGS": "--xla_mine=1 --xla_gpu_enable_pipelined_all_gather=false"}
    flags.set_recommended(environment)
    return environment


def test_what_the_user_has_set_stays(monkeypatch):
    given = on_machine(monkeypatch, gpus=True)["XLA_FLAGS"].split()
    assert given[:2] == ["--xla_mine=1", "--xla_gpu_enable_pipelined_all_gather=false"]
    assert len(given) == 1 + len(flags.FLAGS["gpu"])
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in given


def test_each_compiler_gets_its_own(monkeypatch):
    environment = on_machine(monkeypatch, tpu=True)
    assert len(environment["LIBTPU_INIT_ARGS"].split()) == len(flags.FLAGS["tpu"])
    assert len(environment["XLA_FLAGS"].split()) == 2


def test_a_machine_without_accelerators_or_with_an_untried_compiler_gets_none(monkeypatch):
    assert list(on_machine(monkeypatch)) == ["XLA_FLAGS"]
    assert list(on_machine(monkeypatch, tpu=True, version="9.9")) == ["XLA_FLAGS"]
    assert len(on_machine(monkeypatch, gpus=True, version="9.9")["XLA_FLAGS"].split()) == 2
