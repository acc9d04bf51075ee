"""What other people's tools have said of our files is listed at the end of a run, whether or not a test failed.

A test says it with `record_property("validated", "12 JobSets by kubernetes-validate 1.37")`.
"""


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    said = {
        f"{value}": report.outcome
        for report in reports
        for name, value in report.user_properties
        if name == "validated"
    }
    if said:
        terminalreporter.section("validated by other people's tools")
        for what, outcome in sorted(said.items()):
            terminalreporter.write_line(f"{outcome}: {what}")
