"""Every script that a renderer writes is bash without a mistake that bash or shellcheck can see."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests.launch import golden


def scripts() -> dict[str, str]:
    """Return every shell script of the golden folders, also those in YAML files and in another script's quotes."""
    found = {}
    for path in sorted(golden.FOLDER.rglob("*")):
        name = str(path.relative_to(golden.FOLDER))
        if path.suffix in (".sh", ".sbatch"):
            found[name] = path.read_text()
        if path.suffix == ".sbatch":
            host = re.search(r"^host='\n(.*?)^'$", path.read_text(), re.DOTALL | re.MULTILINE)[1]
            found[f"{name}: host"] = f"ends=.  # exported to it\n{host}"
        if path.name == "job.yaml":
            task = yaml.safe_load(path.read_text())
            found |= {f"{name}: {part}": task[part] for part in ("setup", "run") if part in task}
    return found


def test_bash_reads_every_script():
    found = scripts()
    assert len(found) > 40
    for name, text in found.items():
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), f"{name}: {done.stderr}"


@pytest.mark.peer
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed: scripts are only parsed")
def test_shellcheck_finds_nothing_in_any_script(tmp_path, record_property):
    found = scripts()
    record_property("validated", f"{len(found)} scripts by shellcheck")
    paths = [tmp_path / re.sub(r"\W+", "-", name) for name in found]
    for path, text in zip(paths, found.values(), strict=True):
        path.write_text(text)
    done = subprocess.run(["shellcheck", "--shell=bash", "--severity=warning", *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
