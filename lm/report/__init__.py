"""Reports: self-contained HTML pages about runs and sweeps, with their plots."""
