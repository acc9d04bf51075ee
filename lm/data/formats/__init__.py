"""Other people's token files, read into shards and written from them: a file here per format.

Each has `SUFFIX`, `read(paths, tokenizer)`, which yields `(where it begins, tokens)` of every document without its
separators (empty ones are left out), and `write(documents, path, tokenizer)`, which returns the files that it wrote.
"""

from types import ModuleType

from lm.data.formats import datatrove, llmc, megatron, nanogpt
from lm.errors import UsageError, did_you_mean

FORMATS: dict[str, ModuleType] = {"nanogpt": nanogpt, "llmc": llmc, "megatron": megatron, "datatrove": datatrove}


def find_format(name: str) -> ModuleType:
    """Return the format of this name; raises UsageError if there is none."""
    if name not in FORMATS:
        raise UsageError(f"--format {name}: expected one of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    return FORMATS[name]
