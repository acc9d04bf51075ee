"""Runs of one process that differ in the step's inputs alone compile nothing after the first, whatever they do."""

import jax
import pytest

from lm.commands import common
from lm.commands.training import Shared, run_training
from lm.train.interrupts import Interrupts


@pytest.mark.slow
def test_the_second_run_of_a_process_compiles_nothing(config, tmp_path):
    compiled = []

    def listen(event, seconds, **about):
        if "compile" in event:
            compiled.append(about.get("fun_name", event))

    def train(shared, name, **changes):
        config_dict = common.load_config(str(config))
        config_dict.log.sample_prompts = ("abc",)  # samples, validation and checkpoints too
        config_dict.log.sample_tokens = 8
        for path, value in changes.items():
            section, field = path.split("__")
            config_dict[section][field] = value
        config_dict.optimizer.num_steps = 6
        resolved = common.resolve_here(config_dict)
        before = len(compiled)
        options = {"config_file": str(config), "interrupts": Interrupts(), "with_report": False}
        result = run_training(resolved, str(tmp_path / name), shared=shared, **options)
        return result["loss"], compiled[before:]

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        shared = Shared()
        first, programs = train(shared, "first")
        assert programs
        second, programs = train(
            shared, "second", optimizer__learning_rate=1e-3, optimizer__b1=0.8, optimizer__clip_norm=None
        )
        assert programs == [] and first != second
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
