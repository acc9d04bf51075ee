"""The source `huggingface`: a dataset of the Hugging Face hub, streamed, or a local folder of the same kind."""

import functools
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from lm.config import DataConfig
from lm.data.document import Document
from lm.data.sources.files import find_files, stat_files
from lm.errors import ConfigError, DamagedFileError, LmError, UsageError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def huggingface(config: DataConfig) -> Iterator[Document]:
    """A dataset's split, streamed: a document per row, its text under `config.text_key`.

    Nothing is kept on disk, so training a tokenizer on it streams it twice. When a connection drops, the range of
    the file that was being read (16 MB of text, some row groups of parquet) is requested again: 5 times by
    huggingface_hub, 1 to 8 s apart, and around that 20 times by `datasets`, 5 s apart.

    Raises:
      UsageError: no network, no such dataset, or `datasets` is not installed.
      ConfigError: no such subset, split or text field.
      DamagedFileError: a row without text; names the row.
      LmError: the connection was lost for good, or the files cannot be read.
    """
    datasets = _library()
    local = _local(config)
    revision = None if local else _commit(config.path, config.revision)  # also a quick look at network and name
    try:
        stream = datasets.load_dataset(
            local or config.path, config.subset, split=config.split, revision=revision, streaming=True
        )
        if stream.column_names is not None:
            if config.text_key not in stream.column_names:
                columns = ", ".join(stream.column_names)
                raise ConfigError(
                    f"config.data.text_key={config.text_key!r}: {config.path!r} has the columns {columns}."
                )
            stream = stream.select_columns([config.text_key])
        for row, record in enumerate(stream, 1):
            text = record.get(config.text_key)
            if not isinstance(text, str):
                raise DamagedFileError(
                    f'{config.path}: row {row} has no text under "{config.text_key}" (config.data.text_key) '
                    f"but {type(text).__name__}."
                )
            yield Document(text, f"{config.path}:{row}")
    except LmError:
        raise
    except Exception as error:  # a dozen kinds, of the libraries below `datasets`
        raise _explained(config, error) from error


def inputs(config: DataConfig) -> list:
    """Return the local files, or dataset, subset, split and commit: no network is needed if the commit is given."""
    local = _local(config)
    if local:
        return [stat_files(find_files(local)), config.subset, config.split]
    pinned = config.revision and _COMMIT.fullmatch(config.revision)
    return [
        config.path,
        config.subset,
        config.split,
        config.revision if pinned else _commit(config.path, config.revision),
    ]


def about(config: DataConfig) -> dict[str, Any]:
    """Return subset, split and the commit that was read, with a word if the config does not pin it."""
    content = {"subset": config.subset, "split": config.split}
    if not _local(config):
        commit = _commit(config.path, config.revision)
        pinned = config.revision == commit
        content["revision"] = commit if pinned else f"{commit} (not pinned: what {config.revision or 'main'} was then)"
    return content


def _local(config: DataConfig) -> str | None:
    """Return the path if it is a folder here."""
    path = os.path.expanduser(config.path)
    return path if os.path.isdir(path) else None


@functools.cache  # one answer per process: the cache key, both passes and the card name one commit
def _commit(path: str, revision: str | None) -> str:
    """Ask the hub for the commit of a revision (None: main).

    Raises:
      UsageError: no network, or no such dataset or revision, or it is not public.
    """
    _library()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(path, revision=revision).sha
    except HFValidationError as error:
        raise ConfigError(f"config.data.path={path!r}: expected a folder, or a dataset as org/name.") from error
    except RevisionNotFoundError as error:
        raise UsageError(f"config.data.revision={revision!r}: the dataset {path!r} has no such revision.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise UsageError(
            f"config.data.path={path!r}: the Hugging Face hub answered {status}. Check the name; "
            "for a gated or private dataset set $HF_TOKEN."
        ) from error
    except Exception as error:  # of whichever HTTP library is below
        raise UsageError(
            f"cannot reach the Hugging Face hub for {path!r} ({_line(error)}). Check the network, or give a local "
            "folder of its files. Data that is prepared already needs no network if config.data.revision is a commit."
        ) from error


def _explained(config: DataConfig, error: Exception) -> LmError:
    """Return what a failure inside `datasets` means."""
    if isinstance(error, FileNotFoundError):
        return UsageError(f"config.data.path={config.path!r}: {_line(error)}")
    if type(error) is ValueError and re.match("Bad split|BuilderConfig|Config name", str(error)):
        return ConfigError(
            f"config.data.subset={config.subset!r}, config.data.split={config.split!r} of {config.path!r}: {_line(error)}"
        )
    return LmError(f"cannot read the dataset {config.path!r}: {type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@functools.cache
def _library():
    """Import `datasets`, without its progress bars and without what it logs about errors that it raises anyway."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"the source huggingface needs datasets ({error}). Install it with: pip install -e '.[data]'."
        ) from error
    datasets.disable_progress_bars()
    for handler in logging.getLogger("datasets").handlers:
        handler.addFilter(lambda record: record.levelno < logging.ERROR)
    return datasets
