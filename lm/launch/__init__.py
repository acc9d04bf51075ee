"""Any verb as a job on other machines: what it is (`job`), how each tool is told (renderers), what its workers do."""
