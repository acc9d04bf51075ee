"""`lm report`: what a sweep says, what a search has found, or how a run went, as one page."""

import argparse

from lm.commands import common
from lm.errors import UsageError
from lm.storage import exists, join, read_text, write_atomic

HELP = (
    "What a sweep says: which variants beat the baseline, by how much, and whether it is more than the noise of the\n"
    "seeds. Writes DIR/report.html (one file, to be sent to a colleague), report.md and table.csv, and prints the\n"
    "verdict. The sweep may still be running. The folder of a search gets the page about its trials, that of a single\n"
    "run the page about that run."
)
FORMATS = ("html", "markdown", "csv", "table")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="of a sweep, a search or a run; local or a URL")
    parser.add_argument("--out", metavar="FILE", help="where the page goes (default DIR/report.html)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="html",
        help="html: write the page (default); the others are printed, or written to --out, and nothing else is",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with every figure")
    parser.epilog = (
        "examples:\n  lm report sweeps/swiglu_vs_gelu\n"
        "  lm report sweeps/swiglu_vs_gelu --out swiglu.html\n"
        "  lm report sweeps/swiglu_vs_gelu --format markdown >> notes.md\n"
        "  lm report runs/tiny"
    )


def run(args: argparse.Namespace) -> None:
    from lm.sweep.results import is_sweep
    from lm.sweep.search import is_search

    if args.json and args.format != "html":
        raise UsageError(f"--json and --format {args.format} exclude each other.")
    if is_search(args.folder):
        _report_search(args)
    elif is_sweep(args.folder):
        _report_sweep(args)
    elif exists(join(args.folder, "config.json")):
        _report_run(args)
    else:
        raise UsageError(
            f'"{args.folder}" holds no sweep (sweep.json), search (search.json) or run (config.json). Check the path.'
        )


def _report_sweep(args: argparse.Namespace) -> None:
    from lm.report import sweep_text as text
    from lm.report import sweep_words as words
    from lm.report.sweep import write_sweep_report
    from lm.sweep.results import read_sweep

    path = None
    if args.format == "html":
        path = write_sweep_report(args.folder, args.out)
        common.note(f"wrote {path}")
    sweep = read_sweep(args.folder)
    judgement = words.judge_sweep(sweep)
    if args.json:
        print(common.result_json({"report": path} | text.result_object(sweep, judgement)))
        return
    if args.format == "html":
        print(text.terminal_table(sweep, judgement) + "\n")
        print("\n".join(line for _, line in words.verdict_lines(sweep, judgement)))
        return
    forms = {"markdown": text.markdown, "csv": text.csv_table, "table": text.terminal_table}
    _put(args, forms[args.format](sweep, judgement))


def _report_search(args: argparse.Namespace) -> None:
    from lm.report import search_text as text
    from lm.report.search import write_search_report
    from lm.sweep.search_results import read_search_results

    path = None
    if args.format == "html":
        path = write_search_report(args.folder, args.out)
        common.note(f"wrote {path}")
    results = read_search_results(args.folder)
    if args.json:
        print(common.result_json({"report": path} | text.result_object(results)))
        return
    if args.format == "html":
        print(text.terminal_table(results) + "\n")
        print("\n".join(line for _, line in text.findings(results)))
        if results.best:
            print("\n" + text.command_of(results, results.best))
        return
    forms = {"markdown": text.markdown, "csv": text.csv_table, "table": text.terminal_table}
    _put(args, forms[args.format](results))


def _put(args: argparse.Namespace, content: str) -> None:
    """Print what was asked for, or write it where it was asked to be."""
    content = content.rstrip("\n") + "\n"
    if args.out:
        write_atomic(args.out, content)
        common.note(f"wrote {args.out}")
    else:
        print(content, end="")


def _report_run(args: argparse.Namespace) -> None:
    from lm.report.run import write_run_report

    if args.format != "html":
        raise UsageError(f"--format {args.format} is for sweeps and searches; a run has a page only.")
    path = write_run_report(args.folder)
    if args.out and args.out != path:
        write_atomic(args.out, read_text(path))
        path = args.out
    common.note(f"wrote {path}")
    print(common.result_json({"report": path}) if args.json else path)
