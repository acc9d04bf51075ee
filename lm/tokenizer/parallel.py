"""Encoding many documents in several processes, in order."""

import collections
import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lm.errors import LmError
from lm.tokenizer.tokenizer import Tokenizer

_CHUNK = 1_000_000  # characters per task: long enough to hide the cost of moving it, short enough to spread
_SMALL = 4 * _CHUNK  # below this, starting processes costs more than it saves


def encode_documents(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Yield `[eot] + tokens` (uint32) of each text, in order.

    Args:
      tokenizer: what encodes.
      texts: read lazily, a few million characters ahead of what is yielded.
      workers: processes; None: one per core. 1, or little text: no process is started.
      progress: called with the characters encoded so far.

    The processes are spawned, since forking is unsafe once JAX has threads. They import this room only.

    Raises:
      LmError: a process died (out of memory, say).
    """
    workers = workers or available_cores()
    chunks = _chunks(texts)
    head = list(itertools.islice(chunks, _SMALL // _CHUNK)) if workers > 1 else []
    chunks_left = itertools.chain(head, chunks)
    small = workers == 1 or sum(map(_characters, head)) < _SMALL
    characters = 0
    encode = _encode_here if small else _encode_in_processes
    for chunk_characters, documents in encode(tokenizer, chunks_left, workers):
        characters += chunk_characters
        yield from documents
        if progress:
            progress(characters)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _characters(chunk: list[str]) -> int:
    return sum(map(len, chunk))


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group texts into lists of about `_CHUNK` characters."""
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode_here(tokenizer, chunks, workers):
    del workers
    for chunk in chunks:
        for text in chunk:
            yield len(text), [tokenizer.encode_document(text)]


def _encode_in_processes(tokenizer, chunks, workers):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    spawn = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, spawn, _start_worker, (tokenizer,))
    pending = collections.deque()
    try:
        for chunk in itertools.chain(chunks, itertools.repeat(None, 2 * workers)):
            if chunk is not None:
                with _interrupts_blocked():
                    pending.append((_characters(chunk), executor.submit(_encode_chunk, chunk)))
            # Two tasks per worker in flight keep them busy and bound what is held in memory.
            if pending and (chunk is None or len(pending) >= 2 * workers):
                characters, future = pending.popleft()
                tokens, ends = future.result()
                yield characters, np.split(tokens, ends[:-1])
    except BrokenProcessPool as error:
        raise LmError(
            "an encoding process died. Give it more memory or use fewer processes (config.data.workers=1); "
            'a script that prepares data needs `if __name__ == "__main__":`.'
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes that never see Ctrl-C (a blocked signal is inherited): the parent stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_tokenizer: Tokenizer | None = None  # of a worker process


def _start_worker(tokenizer: Tokenizer) -> None:
    import multiprocessing

    global _tokenizer
    _tokenizer = tokenizer
    parent = multiprocessing.parent_process()

    def follow_parent() -> None:  # a parent killed outright cannot stop its workers
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _encode_chunk(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents' tokens end to end, and their ends."""
    documents = [_tokenizer.encode_document(text) for text in texts]
    return np.concatenate(documents), np.cumsum([len(document) for document in documents])
