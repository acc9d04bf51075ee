"""The source `parquet`: a document per row."""

import contextlib
from collections.abc import Callable, Iterator

from lm.config import DataConfig
from lm.data.document import Document
from lm.data.sources.files import config_files, relative_name
from lm.errors import ConfigError, DamagedFileError, LmError, UsageError

_BATCH_ROWS = 256
BUFFER_BYTES = 1 << 20  # a column is read in such pieces, not as a whole row group


def parquet_files(config: DataConfig) -> list[str]:
    """Return the paths that `parquet` reads, sorted; of a folder only `.parquet`."""
    return config_files(config, (".parquet",))


def parquet(config: DataConfig) -> Iterator[Document]:
    """Parquet files, a document per row, its text in the column `config.text_key`; no other column is read.

    Raises:
      UsageError: nothing is at `config.path`, or pyarrow is not installed.
      ConfigError: a file has no such column, or it does not hold text.
      DamagedFileError: a file cannot be read, or a row has no text; names file and row.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(
            f"reading parquet needs pyarrow ({error}). Install it with: pip install -e '.[data]'."
        ) from error

    for path in parquet_files(config):
        name, row = relative_name(path, config), 0
        with reading(path, lambda: row), pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:  # noqa: B023
            check_column(path, file.schema_arrow, config.text_key)
            for batch in file.iter_batches(_BATCH_ROWS, columns=[config.text_key]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        raise DamagedFileError(
                            f'{path}: row {row} has no text under "{config.text_key}" (it is null). '
                            "Filter such rows out, or set config.data.text_key."
                        )
                    yield Document(text, f"{name}:{row}")


@contextlib.contextmanager
def reading(path: str, row: Callable[[], int]) -> Iterator[None]:
    """Turn what pyarrow raises within the block into one line.

    Args:
      path: of the file.
      row: returns the last row that was read.

    Raises:
      DamagedFileError: its content is damaged.
      LmError: it cannot be read.
    """
    import pyarrow

    def damaged(error: Exception) -> DamagedFileError:
        return DamagedFileError(f'"{path}" is damaged after row {row()}: {" ".join(str(error).split())}. Get it again.')

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise damaged(error) from error
    except OSError as error:
        if error.errno is None:  # pyarrow's own, for damaged content
            raise damaged(error) from error
        raise LmError(f'cannot read "{path}": {error.strerror or error}.') from error


def check_column(path: str, schema, key: str, field: str = "config.data.text_key") -> None:
    """Refuse a column that is not there or holds no text; raises ConfigError. `field`: the config's, that names it."""
    import pyarrow.types as kinds

    if key not in schema.names:
        raise ConfigError(f'{field}={key!r}: "{path}" has the columns {", ".join(schema.names)}.')
    kind = schema.field(key).type
    plain = kind.value_type if kinds.is_dictionary(kind) else kind
    if not (kinds.is_string(plain) or kinds.is_large_string(plain) or kinds.is_string_view(plain)):
        raise ConfigError(f'{field}={key!r}: that column of "{path}" holds {kind}, expected string.')
