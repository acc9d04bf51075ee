"""Every renderer's text for every topology and verb, to the byte."""

import pytest

from tests.launch import golden

CASES = list(golden.cases())


@pytest.mark.parametrize(("target", "name", "job"), CASES, ids=[f"{target}-{name}" for target, name, _ in CASES])
def test_a_job_renders_as_it_did_when_a_person_last_read_it(target, name, job):
    folder = golden.FOLDER / target / name
    kept = {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}
    assert golden.rendered(job) == kept, "if this was meant: python -m tests.launch.golden, and read the difference"


def test_no_golden_folder_is_left_that_nothing_renders():
    kept = {
        f"{path.parent.name}/{path.name}" for target in golden.TARGETS for path in (golden.FOLDER / target).iterdir()
    }
    assert kept == {f"{target}/{name}" for target, name, _ in CASES}
