"""`lm launch`: any verb as a job on other machines, or on this one, that survives preemption."""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from lm.commands import common, launch_records
from lm.commands.launch_checks import problems_of
from lm.errors import LmError, UsageError, did_you_mean
from lm.launch import code, prices
from lm.launch.job import TARGETS, Job, named, option
from lm.launch.records import DONE, ENDED, FAILED, LOST, RESTART, RUNNING, STOPPED, WAITING, Records, open_folder
from lm.launch.render import CODE, Command, Rendering
from lm.storage import join, read_bytes, write_atomic

HELP = "Run any verb as a job on cloud TPUs, a GPU cluster or this machine: checked first, restarted when preempted."
ACTIONS = ("status", "logs", "stop", "list", "worker")
_DEFAULT_TOPOLOGY = {"local": "here"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "lm launch --target TARGET --topology NAME [options] -- VERB …\n"
        "       lm launch status|logs|stop|list WORKDIR [--name JOB]"
    )
    parser.add_argument("job", nargs="*", help=argparse.SUPPRESS)
    what = parser.add_argument_group("the job")
    what.add_argument("--target", help=f"where: {', '.join(TARGETS)}")
    what.add_argument("--topology", metavar="NAME", help="v5e:4x4, 2*v6e:16x16 (two slices), h100:64, cpu:8, here")
    what.add_argument("--workdir", metavar="DIR", help="of the job's records; default: the verb's own folder")
    what.add_argument("--shared-disk", action="store_true", help="local paths are on a disk that all hosts see")
    what.add_argument("--name", help="of the job; default: made of verb and config, the same for the same job")
    what.add_argument("--spot", action="store_true", help="cheaper hosts that may be taken away at any time")
    what.add_argument("--reservation", metavar="NAME", help="use reserved capacity")
    what.add_argument("--env", metavar="NAME=VALUE", action="append", default=[], help="a variable on every host")
    what.add_argument("--image", metavar="NAME", help="a container that has this project installed")
    what.add_argument("--install", metavar="COMMAND", help="instead of the target's own installation; '' for none")
    what.add_argument("--option", metavar="NAME=VALUE", action="append", default=[], help="of the target, see below")
    what.add_argument("--max-restarts", type=int, metavar="N", default=Job.max_restarts)
    what.add_argument("--grace-seconds", type=int, metavar="N", default=Job.grace_seconds, help="to save, at an end")
    what.add_argument("--silence-minutes", type=float, metavar="N", default=Job.silence_minutes, help="then it hangs")
    what.add_argument("--budget-hours", type=float, metavar="N", help="of running, then it saves and stops")
    what.add_argument("--dry-run", action="store_true", help="show everything that would be done, and its price")
    records_of = parser.add_argument_group("status, logs, stop, list")
    records_of.add_argument("--host", help="logs: which host, like 0-3 (default: the first)")
    records_of.add_argument("--lines", type=int, metavar="N", default=40, help="logs: so many, from the end")
    records_of.add_argument("--follow", action="store_true", help="logs: and what comes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.epilog = (
        "examples:\n"
        "  lm launch --target tpu-vm --topology v5e:4x4 --spot --option zone=us-west4-a --dry-run -- \\\n"
        "    train --config experiments/llama_1b.py --workdir gs://my-bucket/llama-1b\n"
        "  lm launch --target local --topology '2*cpu:4' -- train --config experiments/tiny.py --workdir runs/tiny\n"
        "  lm launch status gs://my-bucket/llama-1b\n\n"
        "The same command again is the same job: it is taken up where it is. Pages with all steps: launch/*.md.\n\n"
        f"options of the targets (--option NAME=VALUE):\n{_options_help()}"
    )


def _options_help() -> str:
    lines = []
    for target in TARGETS:
        lines += [f"  {target}: {name}: {help}" for name, help in _module(target).OPTIONS.items()]
    return "\n".join(lines)


def _module(target: str) -> Any:
    return importlib.import_module(f"lm.launch.{target.replace('-', '_')}")


def run(args: argparse.Namespace) -> None:
    action, *rest = args.job or [""]
    if action == "worker":
        from lm.launch.worker import work

        if len(rest) != 1:
            raise UsageError("lm launch worker FOLDER: of the job.")
        sys.exit(work(rest[0]))
    if action in ACTIONS:
        if len(rest) != 1:
            raise UsageError(f"lm launch {action} WORKDIR: expected one folder.")
        launch_records.run(action, rest[0], args)
        return
    if "--" not in args.arguments:
        raise UsageError(
            f"what is to be launched comes after --: lm launch --target … -- VERB …; or one of {', '.join(ACTIONS[:-1])}."
        )
    _launch(args)


def _launch(args: argparse.Namespace) -> None:
    job, problems = _job(args)
    is_here = job.target == "local"
    root = None if is_here else code.root_of(os.getcwd())
    if root is not None:
        job = dataclasses.replace(job, commit=code.commit(root))
    module = _module(job.target) if job.target in TARGETS else None
    found, needs = problems_of(job, root, module and module.render)
    problems += found
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise UsageError(f"not launched; {len(problems)} problem{'s' * (len(problems) > 1)}:{lines}")
    job = dataclasses.replace(job, needs=needs)
    rendering, price = module.render(job), prices.cost(job)
    if args.dry_run:
        _show(job, rendering, price, args.json)
        return
    common.note(f"job {job.name}: {price or 'hardware of your own'}")
    store = Records(job.folder)
    open_folder(job.folder)
    if not store.claim(job) and not _goes_on(job, store, rendering):
        launch_records.say_how(job)
        return
    _store_files(job, rendering, root)
    if is_here:
        from lm.launch import local

        store.submit(target=job.target)
        sys.exit(local.run(job, common.note))
    with _files_of(job, rendering) as folder:
        if job.target == "tpu-vm":
            _drive_tpu_vm(job, folder, store)
        else:
            _submit(job, rendering, folder, store)
    launch_records.say_how(job)


def _goes_on(job: Job, store: Records, rendering: Rendering) -> bool:
    """Return whether a job that exists has something left to do for this command, and say what it is."""
    known = store.job()
    state = store.state(known)
    common.note(f"this job exists: {state.state}{f' ({state.reason})' if state.reason else ''}")
    if state.state == DONE:
        return False
    if state.state in ENDED:  # failed or stopped: once more, from its last checkpoint
        for command in () if job.target in ("local", "tpu-vm") else rendering.stop:
            _run_quietly(command, ".")  # what ended may still be in the way, or gone already
    elif state.submissions and job.target not in ("local", "tpu-vm"):
        common.note(f"{job.target} has it; `lm launch stop {job.workdir}` first to submit it anew")
        return False
    elif state.state == RUNNING and job.target == "local":
        return False
    if known.commit != job.commit:
        common.note(
            f"it was launched with the code of {known.commit[:12]}; its next start takes that of {job.commit[:12]}"
        )
    write_atomic(join(job.folder, "job.json"), job.to_json())
    return True


def _submit(job: Job, rendering: Rendering, folder: str, store: Records) -> None:
    """Give a job to its target's own tool."""
    # Before the tool: a host may begin before it returns.
    number = store.submit(target=job.target, commands=[str(command) for command in rendering.submit])
    try:
        for command in rendering.submit:
            common.note(f"{command.what}: {command}")
            done = _run_quietly(command, folder)
            sys.stderr.write(done.stdout + done.stderr)
            if done.returncode:
                last = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1]
                raise LmError(f"{command.argv[0]} ended with exit code {done.returncode}: {last}")
    except BaseException:
        store.withdraw(number)
        raise


def _drive_tpu_vm(job: Job, folder: str, store: Records) -> None:
    """Stay with a job on TPU VMs until it has ended and everything is given back."""
    from lm.launch import tpu_vm_driver

    if store.state(job).state in (*ENDED, WAITING):
        store.submit(target=job.target)

    def run(command: Command) -> tpu_vm_driver.Completed:
        done = _run_quietly(command, folder)
        return tpu_vm_driver.Completed(done.returncode, done.stdout, done.stderr)

    def state() -> tpu_vm_driver.JobState:
        now = store.state(job)
        status = {WAITING: "unknown", RESTART: "restartable", LOST: "restartable"}.get(now.state, now.state)
        return tpu_vm_driver.JobState(
            status,
            now.reason,
            now.silent_seconds,
            lost=tuple(host.host for host in now.hosts if host.is_lost or host.state == RESTART),
            finished=tuple(host.host for host in now.hosts if host.state in (DONE, STOPPED)),
        )

    end = tpu_vm_driver.drive(job, run=run, state=state, note=common.note)
    if end.status == FAILED:
        raise LmError(f"{job.name} failed: {end.reason}")
    common.note(f"{job.name}: {end.status}{f' ({end.reason})' if end.reason else ''}")


def _job(args: argparse.Namespace) -> tuple[Job, list[str]]:
    """Return the job that the command line describes, and what is wrong with the description."""
    arguments = tuple(args.arguments[args.arguments.index("--") + 1 :])
    if not arguments:
        raise UsageError("after -- comes a verb with its arguments: -- train --config … --workdir …")
    problems = []
    target, topology, workdir = args.target or "", args.topology or _DEFAULT_TOPOLOGY.get(args.target), args.workdir
    if target not in TARGETS:
        given = f'--target "{target}"' if target else "--target is needed"
        problems.append(f"{given}: expected one of {', '.join(TARGETS)}.{did_you_mean(target, TARGETS)}")
    for name in ("--workdir", "--out", "--checkpoint"):
        workdir = workdir or option(arguments, name)
    for name, least in (("max_restarts", 0), ("grace_seconds", 1), ("silence_minutes", 0.1)):
        if getattr(args, name) < least:
            problems.append(f"--{name.replace('_', '-')} {getattr(args, name)}: expected {least} or more.")
    options = _pairs("--option", args.option, problems)
    accepted = _module(target).OPTIONS if target in TARGETS else options
    problems += [
        f"--option {name}: {target} has no such option.{did_you_mean(name, accepted)} "
        f"Options: {', '.join(accepted) or 'none'}."
        for name in options
        if name not in accepted
    ]
    job = named(
        Job(
            arguments=arguments,
            target=target,
            topology=topology or "",
            workdir=workdir or "",
            shared_disk=args.shared_disk,
            spot=args.spot,
            reservation=args.reservation,
            environment=_pairs("--env", args.env, problems),
            image=args.image,
            install=args.install,
            max_restarts=args.max_restarts,
            grace_seconds=args.grace_seconds,
            silence_minutes=args.silence_minutes,
            budget_hours=args.budget_hours,
            options=options,
            name=args.name or "",
        )
    )
    return job, problems


def _pairs(flag: str, values: list[str], problems: list[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if name and equals:
            pairs[name] = text
        else:
            problems.append(f"{flag} {value}: expected NAME=VALUE.")
    return pairs


def _show(job: Job, rendering: Rendering, price: prices.Cost | None, as_json: bool) -> None:
    if as_json:
        print(
            common.result_json(
                {
                    "job": json.loads(job.to_json()),
                    "files": dict(rendering.files),
                    "commands": {
                        name: [str(command) for command in getattr(rendering, name)]
                        for name in ("submit", "watch", "stop")
                    },
                    "notes": list(rendering.notes),
                    "dollars_per_hour": price and price.per_hour,
                }
            )
        )
        return
    print(f"# job {job.name} on {job.topology} ({job.target})")
    print(f"# {price or 'hardware of your own: no price'}")
    print(f"# records, logs and code: {job.folder}")
    for note in rendering.notes:
        print(f"# {note}")
    for name, content in rendering.files.items():
        print(f"\n# --- {name}\n{content.rstrip()}")
    for title, commands in (("do", rendering.submit), ("watch", rendering.watch), ("stop", rendering.stop)):
        print(f"\n# --- to {title}")
        for command in commands:
            print(f"# {command.what}\n{command}")


def _store_files(job: Job, rendering: Rendering, root: str | None) -> None:
    """Put code and rendered files beside the job's records."""
    for name, content in rendering.files.items():
        write_atomic(join(job.folder, name), content)
    if root is not None:
        packed = code.archive(root, job.commit)
        write_atomic(join(job.folder, CODE), packed)
        common.note(f"code at {job.commit[:12]}: {len(packed) / 1e6:.1f} MB, in {job.folder}")


@contextlib.contextmanager
def _files_of(job: Job, rendering: Rendering) -> Iterator[str]:
    """A local folder with the rendering's files and the code, for the commands."""
    with tempfile.TemporaryDirectory(prefix="lm-launch-") as folder:
        for name, content in rendering.files.items():
            write_atomic(os.path.join(folder, name), content)
        write_atomic(os.path.join(folder, CODE), read_bytes(join(job.folder, CODE)))
        yield folder


def _run_quietly(command: Command, folder: str) -> subprocess.CompletedProcess:
    """Run a command in a folder and return how it ended.

    Raises:
      LmError: its program is not installed.
    """
    given = None if command.stdin is None else pathlib.Path(folder, command.stdin).read_text()
    try:
        return subprocess.run(command.argv, cwd=folder, input=given, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LmError(f"{command.argv[0]} is not installed here; launch/*.md says how to get it.") from error
