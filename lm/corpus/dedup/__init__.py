"""Documents and paragraphs that stand in a corpus more than once: found, and all copies but one dropped."""
