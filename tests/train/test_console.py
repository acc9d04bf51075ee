"""What a person sees: a live line that gives the terminal back, plain lines in a file, a log of everything."""

import io
import re
import subprocess
import sys

import pytest

from lm.train import console as console_module
from lm.train.console import Console, compact, duration, printable


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """rich asks the environment what the terminal can do."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(console_module, "time", clock)
    return clock


def record(step, **more):
    return {
        "step": step,
        "loss": 3.14159,
        "bits_per_byte": 2.5,
        "tokens_per_second": 12_345.0,
        "mfu": None,
        "learning_rate": 1e-3,
        **more,
    }


EVAL = {"kind": "eval", "step": 5, "split": "validation", "loss": 1.5, "perplexity": 4.48, "bits_per_byte": 1.75}
SHOW_CURSOR = "\x1b[?25h"


def test_a_line_says_everything_and_a_dash_for_what_is_not_known(tmp_path):
    out = io.StringIO()
    with Console(str(tmp_path), 400, file=out) as console:
        console.write(record(120))
    assert out.getvalue() == ("step 120/400 · - left · loss 3.142 · 2.500 bits/byte · 12.3k tok/s · MFU - · lr 0.001\n")


def test_a_diverged_loss_and_a_known_mfu_are_shown(tmp_path):
    out = io.StringIO()
    with Console(str(tmp_path), 10, file=out) as console:
        console.write(record(1, loss=float("nan"), mfu=0.4123))
    assert "loss nan" in out.getvalue()
    assert "MFU 41.2%" in out.getvalue()


def test_time_left_is_counted_from_the_first_record_so_that_compilation_does_not_enter(tmp_path, clock):
    out = io.StringIO()
    with Console(str(tmp_path), 110, file=out) as console:
        clock.now += 300  # compilation
        console.write(record(10))
        clock.now += 20
        console.write(record(20))
    assert "step 20/110 · 3:00 left" in out.getvalue()  # 2 s a step, 90 steps


def test_without_a_terminal_lines_are_few_and_the_last_one_is_there(tmp_path, clock):
    out = io.StringIO()
    with Console(str(tmp_path), 100, file=out) as console:
        for step in range(1, 101):
            clock.now += 0.25
            console.write(record(step))
    lines = [line.split(" ·")[0] for line in out.getvalue().splitlines()]
    assert lines == ["step 1/100", "step 41/100", "step 81/100", "step 100/100"]
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_the_line_is_live_and_notes_stand_above_it(tmp_path, clock):
    out = Terminal()
    with Console(str(tmp_path), 100, file=out) as console:
        for step in (1, 2):
            clock.now += 1
            console.write(record(step))
        console.note("saved checkpoint 2")
    shown = out.getvalue()
    assert re.search(r"step 1/100.*\r\x1b\[2K.*step 2/100", shown)  # the line is erased and drawn again
    assert shown.index("saved checkpoint 2\n") < shown.rindex("step 2/100")


def test_the_newest_record_is_what_stays_on_the_terminal(tmp_path, clock):
    out = Terminal()
    with Console(str(tmp_path), 100, file=out) as console:
        console.write(record(1))
        console.write(record(2))  # within the redraw interval
    assert "step 2/100" in out.getvalue()


def test_an_exception_leaves_the_terminal_with_its_cursor_and_streams(tmp_path):
    out, stdout, stderr = Terminal(), sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt), Console(str(tmp_path), 10, file=out) as console:
        console.write(record(1))
        assert sys.stdout is stdout  # results are printed there, never through the live display
        raise KeyboardInterrupt
    assert out.getvalue().endswith(SHOW_CURSOR)
    assert sys.stderr is stderr


def test_a_sample_cannot_act_on_the_terminal(tmp_path):
    out = Terminal()
    with Console(str(tmp_path), 10, file=out) as console:
        console.note("[bold]a\x1b]0;title\x07b\r\nc\x9bd")
    assert "[bold]a\ufffd]0;title\ufffdb\n" in out.getvalue()  # nor is it markup
    assert "\x1b]" not in out.getvalue()
    assert printable("tab\t漢字 👩\u200d🚀\n") == "tab\t漢字 👩\u200d🚀\n"


def test_evaluations_appear_as_notes(tmp_path):
    out = io.StringIO()
    with Console(str(tmp_path), 10, file=out) as console:
        console.write(EVAL)
    assert out.getvalue() == "step 5 · validation: 1.7500 bits/byte · loss 1.5000 · perplexity 4.48 · - tokens\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_everything_is_in_the_log_with_the_time(tmp_path, stream):
    with Console(str(tmp_path), 10, file=stream()) as console:
        console.write(record(1))
        console.write(EVAL)
        console.note("two\nlines")
        console.write(record(10))
        console.summary({"validation bits per byte": "1.75"})
    text = (tmp_path / "log.txt").read_text()
    stamped = re.findall(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d  (.*)$", text, re.MULTILINE)
    assert [line.split(" ·")[0] for line in stamped] == [
        "step 1/10",
        "step 5",
        "two",
        "step 10/10",
        "validation bits per byte: 1.75",
    ]
    assert "\n    lines\n" in text


def test_the_summary_comes_after_the_last_line_even_inside_the_context(tmp_path):
    out = Terminal()
    with Console(str(tmp_path), 10, file=out) as console:
        console.write(record(10))
        console.summary({"report": "runs/x/report.html"})
    shown = out.getvalue()
    assert shown.rindex("step 10/10") < shown.index(SHOW_CURSOR) < shown.index("runs/x/report.html")


def test_rich_is_imported_only_when_a_console_is_made():
    code = "import sys, lm.train.console, lm.train.metrics; sys.exit('rich' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_keep_three_digits():
    shown = [compact(value) for value in (0, 999, 1000, 12_345, 999_600, 1.24e6, 3e12, 0.5, None, float("nan"))]
    assert shown == ["0", "999", "1.00k", "12.3k", "1.00M", "1.24M", "3.00T", "0.50", "-", "-"]


def test_durations_read_as_clocks():
    shown = [duration(seconds) for seconds in (5, 59.7, 3700, 200_000, None)]
    assert shown == ["0:05", "1:00", "1:01:40", "2d 07:33:20", "-"]
