"""The launch pages as a person's shell meets them: every block of a page, run from top to bottom by bash.

The programs are stand-ins that write down their arguments; there is nothing else on PATH. So what is checked is what a
shell makes of a page, with its variables, quotes and continued lines.
"""

import functools
import pathlib
import re
import shutil
import subprocess
import tempfile

REPOSITORY = pathlib.Path(__file__).parents[2]
PAGES = ("tpu-vm", "gke", "slurm", "sky", "README")
_STAND_INS = (
    "deactivate docker gcloud kubectl lm ln pip python python3 rm sinfo sky source squeue ssh-add ssh-agent ssh-keygen"
)
_PRELUDE = """
set -euo pipefail
for program in {stand_ins}; do
  eval "$program() {{ printf '%s\\0' $program \\"\\$@\\" $'\\n' >> \\"\\$RECORD\\"; }}"
done
"""


def text(page: str) -> str:
    """Return a page; of README its section on launching."""
    if page != "README":
        return (REPOSITORY / "launch" / f"{page}.md").read_text()
    return re.search(r"^## Launching\n.*?(?=^## )", (REPOSITORY / "README.md").read_text(), re.M | re.S)[0]


@functools.cache
def commands(page: str) -> tuple[tuple[str, ...], ...]:
    """Return every command of a page, its program first.

    Raises:
      AssertionError: bash ends with an error: an unset variable, a program that is not known here.
    """
    blocks = re.findall(r"^```bash\n(.*?)^```", text(page), re.M | re.S)
    with tempfile.NamedTemporaryFile() as record:
        done = subprocess.run(
            [shutil.which("bash"), "--norc", "-c", _PRELUDE.format(stand_ins=_STAND_INS) + "".join(blocks)],
            env={"PATH": "", "HOME": "/nowhere", "RECORD": record.name},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        words = record.read().decode().split("\0")[:-1]
    assert done.returncode == 0, f"{page}: {done.stderr}"
    found: list[list[str]] = [[]]
    for word in words:
        if word == "\n":
            found.append([])
        else:
            found[-1].append(word)
    return tuple(map(tuple, found[:-1]))


def of(program: str) -> list[tuple[str, ...]]:
    """Return the commands of one program on all pages, each once."""
    return list(dict.fromkeys(argv for page in PAGES for argv in commands(page) if argv[0] == program))
