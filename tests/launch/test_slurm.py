"""Slurm: what is asked for, and what the batch script makes of its hosts' ends, with stand-ins for srun and scontrol."""

import dataclasses
import os
import subprocess
import tarfile

import pytest

from lm.errors import UsageError
from lm.launch import slurm
from lm.launch.job import Job, named
from tests.launch.golden import job_of


def job(topology: str = "h100:16", verb: str = "train", **changes) -> Job:
    changes["options"] = {"folder": "/shared/lm", **changes.get("options", {})}
    return named(dataclasses.replace(job_of("slurm", topology, verb), **changes))


def directives(one: Job) -> list[str]:
    return [line for line in slurm.script(one).splitlines() if line.startswith("#SBATCH")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"topology": "v5e:4x4"}, "GPUs and CPUs only"),
        ({"options": {}}, "--option folder="),
        ({"options": {"folder": "here"}}, "a full path"),
        ({"options": {}, "workdir": "runs/llama"}, "a full path"),
    ],
)
def test_what_slurm_cannot_do_is_refused_in_one_line(changes, said):
    refused = named(dataclasses.replace(job_of("slurm", "h100:16", "train"), **changes))
    with pytest.raises(UsageError, match=said) as caught:
        slurm.render(refused)
    assert "\n" not in str(caught.value)


def test_hosts_that_train_together_are_one_step_and_those_of_a_sweep_one_array_task_each():
    assert {"#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8"} <= set(directives(job()))
    apart = directives(job(verb="sweep"))
    assert {"#SBATCH --nodes=1", "#SBATCH --array=0-1"} <= set(apart)


def test_a_machine_with_eight_gpus_is_taken_whole_and_a_part_of_one_is_not():
    assert {"#SBATCH --exclusive", "#SBATCH --mem=0"} <= set(directives(job("h100:8")))
    part = directives(job("4*l4:1"))
    assert "#SBATCH --nodes=4" in part and not any("exclusive" in line or "mem" in line for line in part)


class Node:
    """A shared folder with the job's code, and a Slurm of shell scripts: two tasks, the greatest code wins."""

    SRUN = """
while [[ $1 == --* ]]; do shift; done
worst=0
for task in 0 1; do
  SLURM_PROCID=$task "$@" || { code=$?; [ $code -le $worst ] || worst=$code; }
done
exit $worst
"""
    SCONTROL = """
if [ "$1" = show ]; then echo "JobId=7 JobState=${STATE:-RUNNING} Reason=None"; else echo "requeued $2"; exit 1; fi
"""

    def __init__(self, folder, python: str, **changes):
        self.folder = folder
        options = {"folder": str(folder / "shared"), **changes.pop("options", {})}
        self.job = job(options=options, **changes)
        self.home = folder / "shared" / self.job.name
        (self.home / "slurm").mkdir(parents=True)
        (folder / "README.md").write_text("the code")
        with tarfile.open(self.home / "code.tar.gz", "w:gz") as archive:
            archive.add(folder / "README.md", "README.md")
        (folder / "bin").mkdir()
        for name, text in {"python": python, "srun": self.SRUN, "scontrol": self.SCONTROL, "sleep": "exit 0"}.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / "bin" / name).chmod(0o755)

    def run(self, **environment: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            ["bash", "-s"],
            input=slurm.render(self.job).files["job.sbatch"],
            env={"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **environment},
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.returncode, done.stdout.splitlines()


def test_a_node_runs_the_worker_on_the_jobs_code_and_knows_which_host_it_is(tmp_path):
    says = 'echo "$LM_LAUNCH_HOST $* $NOTE in $PWD"; cat README.md; [ "$PYTHONPATH" = "$PWD" ]'
    node = Node(tmp_path, says, environment={"NOTE": "two words"})
    code, lines = node.run()
    folder = node.home / "code-0123456789ab"
    assert code == 0
    assert lines[0] == f"0-0 -m lm launch worker {node.job.folder} two words in {folder}"
    assert lines[1].startswith("the code0-1 ")


def test_a_sweeps_task_is_the_host_of_its_number(tmp_path):
    node = Node(tmp_path, 'echo "$LM_LAUNCH_HOST $LM_NUM_PROCESSES"', topology="4*h100:16", verb="sweep")
    assert node.run(SLURM_ARRAY_TASK_ID="5")[1][0] == "2-1 1"


@pytest.mark.parametrize(
    ("first", "second", "code", "again"),
    [
        (0, 0, 0, False),
        (42, 42, 42, True),
        (0, 42, 42, True),
        (137, 42, 42, True),
        (143, 139, 42, True),
        (2, 143, 2, False),  # srun ends the others, and its own code is the greatest: 143
        (137, 1, 1, False),
        (127, 42, 127, False),
    ],
)
def test_a_job_comes_back_unless_it_is_done_or_a_host_says_that_there_is_no_use(tmp_path, first, second, code, again):
    node = Node(tmp_path, f'[ "$LM_LAUNCH_HOST" = 0-0 ] && exit {first}; exit {second}')
    ended, lines = node.run()
    assert ended == code and ("requeued 7" in lines) == again, lines


def test_a_host_that_was_stopped_in_order_does_not_make_srun_end_the_others(tmp_path):
    node = Node(tmp_path, '[ "$LM_LAUNCH_HOST" = 0-0 ] && exit 42; exit 0')
    assert any(line.endswith("srun: exit 0; hosts: exit 0 42") for line in node.run()[1])


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PREEMPTED"])
def test_a_job_that_someone_cancels_does_not_come_back(tmp_path, state):
    code, lines = Node(tmp_path, "exit 42").run(STATE=state)
    assert code == 42 and "requeued 7" not in lines


def test_a_job_comes_back_as_often_as_it_may(tmp_path):
    node = Node(tmp_path, "exit 42", max_restarts=3)
    assert "requeued 7" in node.run(SLURM_RESTART_COUNT="2")[1]
    code, lines = node.run(SLURM_RESTART_COUNT="3")
    assert code == 1 and lines[-1] == "restarted 3 times: no more"


def test_a_job_whose_hosts_never_start_is_given_up_after_three_times(tmp_path):
    node = Node(tmp_path, "kill -9 $PPID")  # the whole task, before it can leave its code
    ends = [node.run(SLURM_RESTART_COUNT=str(count)) for count in range(3)]
    assert [code for code, _ in ends] == [42, 42, 1]
    assert "no more" in ends[2][1][-1]


def test_an_install_step_runs_once_per_commit(tmp_path):
    node = Node(tmp_path, "exit 0", install="echo installing")
    assert [node.run()[1].count("installing") for _ in range(2)] == [1, 0]
