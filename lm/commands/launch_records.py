"""`lm launch status|logs|stop|list`: from a workdir's records alone, on any machine."""

import argparse
import importlib
import os
import shutil
import subprocess
import time
from typing import Any

from lm.commands import common
from lm.errors import LmError, UsageError
from lm.launch import prices
from lm.launch.job import Job
from lm.launch.records import ENDED, Records, jobs_in

_POLL_SECONDS = 2.0
_GONE = ("NOT_FOUND", "not found")  # what tools say of something that they should delete, and that is not there


def run(action: str, workdir: str, args: argparse.Namespace) -> None:
    """Do one of the four for the jobs of a workdir."""
    found = [store for store in jobs_in(workdir) if args.name in (None, os.path.basename(store.folder))]
    if not found:
        named = f' named "{args.name}"' if args.name else ""
        raise UsageError(f'no job{named} in "{workdir}"; lm launch … -- VERB … makes one.')
    if action == "list":
        _list(found, args.json)
    elif action == "status":
        described = [describe(store) for store in found]
        print(common.result_json(described) if args.json else "\n\n".join(map(_status_text, described)))
    elif action == "stop":
        for store in found:
            _stop(store)
    else:
        _logs(_only(found), args)


def _only(found: list[Records]) -> Records:
    if len(found) > 1:
        names = ", ".join(os.path.basename(store.folder) for store in found)
        raise UsageError(f"several jobs here: choose one with --name: {names}.")
    return found[0]


def describe(store: Records) -> dict[str, Any]:
    """Return what a job's records say, as plain data."""
    job = store.job()
    state = store.state(job)
    attempts = {status.host: store.attempts(status.host) for status in state.hosts}
    first = next(iter(attempts.values()), [])
    hours = sum(attempt.seconds for attempt in first) / 3600
    if state.state == "running" and first and first[-1].ended is None:
        hours += (time.time() - first[-1].began) / 3600
    price = prices.cost(job)
    return {
        "name": job.name,
        "folder": store.folder,
        "target": job.target,
        "topology": job.topology,
        "command": f"lm {' '.join(job.arguments)}",
        "commit": job.commit,
        "state": state.state,
        "reason": state.reason,
        "stopping": state.stopping,
        "submissions": state.submissions,
        "attempts": max((status.attempt for status in state.hosts), default=0),
        "progress": max((status.progress for status in state.hosts), default=0),
        "silent_seconds": state.silent_seconds,
        "hours": hours,
        "dollars": None if price is None else price.per_hour * hours,
        "hosts": [
            {"host": s.host, "state": "lost" if s.is_lost else s.state, "attempt": s.attempt, "line": s.line}
            for s in state.hosts
        ],
    }


def _status_text(job: dict[str, Any]) -> str:
    ago = "" if job["silent_seconds"] is None else f", last word {job['silent_seconds']:.0f} s ago"
    lines = [
        f"{job['name']}: {job['state']}{' (asked to stop)' * job['stopping']}{ago}",
        f"  {job['reason']}",
        f"  {job['command']}",
        f"  {job['target']} {job['topology']}, attempt {job['attempts']}, {job['hours']:.2f} hours"
        + ("" if job["dollars"] is None else f", about ${job['dollars']:,.2f}"),
        *(f"  host {h['host']}: {h['state']}, attempt {h['attempt']}: {h['line']}" for h in job["hosts"]),
    ]
    return "\n".join(line for line in lines if line.strip())


def _list(found: list[Records], as_json: bool) -> None:
    described = [describe(store) for store in found]
    if as_json:
        print(common.result_json(described))
        return
    width = max(len(job["name"]) for job in described)
    for job in described:
        print(f"{job['name']:<{width}}  {job['state']:<8} {job['target']:<7} {job['topology']:<12} {job['command']}")


def _stop(store: Records) -> None:
    job = store.job()
    state = store.state(job)
    if state.state in ENDED and job.target in ("local", "slurm"):
        print(f"{job.name}: {state.state} already")
        return
    store.ask_to_stop("asked to stop")
    print(f"{job.name}: asked to stop; its hosts save and end")
    module = importlib.import_module(f"lm.launch.{job.target.replace('-', '_')}")
    failed = []
    for command in () if job.target == "local" else module.render(job).stop:
        program = command.argv[0]
        if shutil.which(program) is None:
            print(f"  {program} is not installed here; where it is, this gives back what costs money:\n  {command}")
        elif _saves_first(store, job):
            done = subprocess.run(command.argv, capture_output=True, text=True)
            said = (done.stdout + done.stderr).strip().splitlines() or ["done"]
            if done.returncode and not any(word in line for word in _GONE for line in said):
                failed.append(f"{next((line for line in said if line.startswith('ERROR')), said[-1])} (of: {command})")
            else:
                print(f"  {command.what}: {said[-1]}")
    if failed:
        raise LmError(f"{job.name}: NOT GIVEN BACK, what it has may cost money: {'; '.join(failed)}")


def _saves_first(store: Records, job: Job) -> bool:
    """Wait until the hosts have saved and ended, for as long as they may take; then all may be deleted."""
    deadline = time.monotonic() + job.grace_seconds
    while time.monotonic() < deadline and store.state(job).state == "running":
        time.sleep(_POLL_SECONDS)
    return True


def _logs(store: Records, args: argparse.Namespace) -> None:
    hosts = store.log_hosts()
    if not hosts:
        raise UsageError(f'no host of "{os.path.basename(store.folder)}" has logged anything yet.')
    host = args.host or hosts[0]
    if host not in hosts:
        raise UsageError(f"--host {host}: this job has {', '.join(hosts)}.")
    shown = store.log(host).read()
    print("\n".join(shown[-args.lines :]), flush=True)
    position, job = len(shown), store.job()
    while args.follow:
        ended = store.state(job).state in ENDED
        lines = store.log(host).read()
        for line in lines[position:]:
            print(line, flush=True)
        position = len(lines)
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def say_how(job: Job) -> None:
    """Print how a job is watched, stopped and taken up again."""
    print(
        f"watch:   lm launch status {job.workdir}\n"
        f"         lm launch logs {job.workdir} --name {job.name} --follow\n"
        f"stop:    lm launch stop {job.workdir} --name {job.name}\n"
        f"resume:  the same lm launch command again"
    )
