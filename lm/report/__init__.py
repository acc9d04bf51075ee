"""Reports: self-contained HTML pages about runs, with their plots."""
