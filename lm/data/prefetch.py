"""Building items ahead of their use in a background thread."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterates over `(step, fn(step))` for the steps from `start` to `stop`, up to `depth` of them ahead.

    An exception of `fn` is raised where its step would have come. The thread is a daemon, so it never
    keeps a process alive; `close` (or leaving the `with` block) stops it.
    """

    def __init__(self, fn: Callable[[int], T], start: int, stop: int, depth: int = 2):
        self._queue: queue.Queue = queue.Queue(maxsize=max(1, depth))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(fn, start, stop), daemon=True, name="prefetch")
        self._thread.start()

    def _work(self, fn: Callable[[int], T], start: int, stop: int) -> None:
        for step in range(start, stop):
            if self._closed.is_set():
                return
            try:
                item = (step, fn(step), None)
            except BaseException as error:
                item = (step, None, error)
            if not self._put(item) or item[2] is not None:
                return
        self._put(None)

    def _put(self, item) -> bool:
        """Queue an item; False if the consumer closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[tuple[int, T]]:
        while not self._closed.is_set():
            item = self._queue.get()
            if item is None:
                self.close()
                return
            step, value, error = item
            if error is not None:
                self.close()
                raise error
            yield step, value

    def close(self) -> None:
        """Stop the thread and drop what was built ahead; may be called again."""
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=10)
        while not self._queue.empty():
            self._queue.get_nowait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()
