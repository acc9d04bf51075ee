"""What the launch pages and README's section on launching say, held against the program."""

import argparse
import calendar
import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import tomllib

import pytest

from lm.__main__ import main
from lm.commands import launch_checks
from lm.commands.verbs import split_overrides
from lm.data import dataset
from lm.launch import prices
from lm.launch.job import TARGETS, Job
from tests.launch import pages

JOBS = list(
    dict.fromkeys(
        tuple(word for word in argv[1:] if word not in ("--dry-run", "--json"))
        for argv in pages.of("lm")
        if "--" in argv
    )
)
OTHERS = [argv for argv in pages.of("lm") if "--" not in argv]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A clean git repository with the experiments."""
    folder = tmp_path_factory.mktemp("repository")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(pages.REPOSITORY / "experiments", folder / "experiments", ignore=ignore)
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "experiments"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture
def everything_is_there(monkeypatch):
    """Buckets that can be written, with the data and checkpoints that a page names; nothing else is left out."""
    monkeypatch.setattr(launch_checks, "make_folder", lambda path: None)
    monkeypatch.setattr(launch_checks, "exists", lambda path: True)
    monkeypatch.setattr(launch_checks.os, "access", lambda path, mode: True)
    monkeypatch.setattr(dataset, "read_manifest", lambda path: {})


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job[2]}-{job[4]}-{job[job.index('--') + 1]}")
def test_every_job_of_a_page_passes_all_checks_and_is_rendered_with_its_price(
    job, repository, everything_is_there, monkeypatch, capsys
):
    monkeypatch.chdir(repository)
    split = job.index("--")
    code = main([*job[:split], "--dry-run", "--json", *job[split:]])
    said = capsys.readouterr()
    assert code == 0, said.err
    shown = json.loads(said.out)
    assert shown["commands"]["submit"] and shown["commands"]["stop"]
    assert (shown["dollars_per_hour"] is None) == (shown["job"]["target"] in ("local", "slurm"))


@pytest.mark.parametrize("argv", OTHERS, ids=lambda argv: " ".join(argv[1:3]))
def test_every_other_lm_command_of_a_page_is_parsed_by_its_verb(argv):
    _, verb, *arguments = argv
    rest, overrides = split_overrides(arguments)
    module = importlib.import_module(f"lm.commands.{verb.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"lm {verb}")
    module.add_arguments(parser)
    options = parser.parse_args(rest)  # exits on a mistake
    assert not overrides or hasattr(options, "config")
    if verb == "launch":
        assert options.job[0] in ("status", "logs", "stop", "list") and len(options.job) == 2


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_option_of_a_target_that_a_page_names_is_one(page):
    targets = {"README": TARGETS, "gke": ("gke", "xpk")}.get(page, (page,))
    known = {
        name for target in targets for name in importlib.import_module(f"lm.launch.{target.replace('-', '_')}").OPTIONS
    }
    named = set(re.findall(r"--option ([a-z_-]+)=", pages.text(page)))
    assert named <= known
    assert named or page == "README"


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_flag_that_a_pages_text_names_is_one_of_lm_launch(page):
    parser = argparse.ArgumentParser()
    importlib.import_module("lm.commands.launch").add_arguments(parser)
    named = set(re.findall(r"`(--[a-z-]+)", pages.text(page))) - {"--machine-type"}  # gcloud's
    assert named <= set(parser._option_string_actions)
    assert "--dry-run" in named


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_link_into_the_repository_leads_somewhere(page):
    base = pages.REPOSITORY if page == "README" else pages.REPOSITORY / "launch"
    for link in re.findall(r"\]\(([^)]+)\)", pages.text(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        assert (base / path).exists(), link
        headings = re.findall(r"^#+ (.*)", (base / path).read_text(), re.M) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], link


def test_readme_has_a_page_for_every_target():
    text = pages.text("README")
    assert all(f"`{target}`" in text for target in TARGETS)
    assert {f"launch/{page}.md" for page in pages.PAGES if page != "README"} <= set(re.findall(r"\]\(([^)]+)\)", text))


@pytest.mark.parametrize("page", ["tpu-vm", "gke"])
def test_the_prices_in_a_page_are_those_of_the_table(page):
    job = Job((), page, "v5e:4x4", "gs://bucket/run")
    costs = [prices.cost(dataclasses.replace(job, spot=spot), {}) for spot in (False, True)]
    assert re.findall(r"\$(\d+\.\d\d)", pages.text(page)) == [f"{cost.per_hour:.2f}" for cost in costs]
    year, month = costs[0].as_of.split("-")
    assert f"prices of {calendar.month_name[int(month)]} {year}" in pages.text(page)


def test_extras_that_a_page_installs_are_the_projects():
    known = tomllib.loads((pages.REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = " ".join(word for page in pages.PAGES for argv in pages.commands(page) for word in argv)
    named = re.findall(
        r"(?:\.\[|EXTRAS=)([a-z,]+)", installs + (pages.REPOSITORY / "launch" / "Dockerfile").read_text()
    )
    assert {extra for names in named for extra in names.split(",")} <= set(known)
    assert len(named) > 4


# Of the pages' tables of failures: what our own code says.
SAID = {
    "not launched; ": "lm/commands/launch.py",
    "the working tree differs from its commit": "lm/commands/launch_checks.py",
    "without a word of its hosts": "lm/launch/tpu_vm_driver.py",
    "tried again in ": "lm/launch/tpu_vm_driver.py",
    "STILL THERE, AND COSTS MONEY": "lm/launch/tpu_vm_driver.py",
    " times in a row": "lm/launch/policy.py",
    "without any progress": "lm/launch/policy.py",
    "needs a full path": "lm/launch/slurm.py",
    "is not installed here": "lm/commands/launch.py",
    "srun failed three times before any host had a word": "lm/launch/slurm.py",
    "several hosts, but JAX cannot join them": "lm/commands/cluster.py",
    "does not join slices": "lm/launch/sky.py",
}


@pytest.mark.parametrize("message", SAID)
def test_what_a_table_of_failures_quotes_is_said_by_the_code(message):
    assert message in (pages.REPOSITORY / SAID[message]).read_text()
    assert any(message.strip() in pages.text(page) for page in pages.PAGES)


def test_what_the_image_copies_is_in_the_repository():
    lines = re.findall(r"^COPY (.*) \S+$", (pages.REPOSITORY / "launch" / "Dockerfile").read_text(), re.M)
    copied = {name for line in lines for name in line.split()}
    assert all((pages.REPOSITORY / name).exists() for name in copied)
    assert {"pyproject.toml", "requirements.txt", "README.md", "lm", "experiments"} <= copied
