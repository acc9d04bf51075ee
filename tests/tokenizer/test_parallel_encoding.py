"""Encoding in several processes gives what one gives."""

import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from lm.errors import LmError
from lm.tokenizer import encode_documents, parallel


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(parallel, "_CHUNK", 5_000)
    monkeypatch.setattr(parallel, "_SMALL", 20_000)


def test_processes_give_the_same_documents_in_the_same_order(tokenizer, texts, small_chunks):
    seen = []
    encoded = list(encode_documents(tokenizer, iter(texts), workers=2, progress=seen.append))
    assert len(encoded) == len(texts)
    for text, document in zip(texts, encoded, strict=True):
        np.testing.assert_array_equal(document, tokenizer.encode_document(text))
    assert seen[-1] == sum(map(len, texts))
    assert seen == sorted(seen)


def test_little_text_starts_no_process(tokenizer, texts, monkeypatch):
    monkeypatch.setattr(parallel, "_encode_in_processes", None)
    assert len(list(encode_documents(tokenizer, texts[:3], workers=8))) == 3
    assert list(encode_documents(tokenizer, [], workers=8)) == []


def test_abandoning_the_iterator_stops_the_processes(tokenizer, texts, small_chunks):
    encoded = encode_documents(tokenizer, texts, workers=2)
    next(encoded)
    assert multiprocessing.active_children()
    encoded.close()
    assert not multiprocessing.active_children()


class Deadly(str):
    """A text that ends the process that receives it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_dies_is_one_clear_error(tokenizer, texts, small_chunks):
    with pytest.raises(LmError, match="process died"):
        list(encode_documents(tokenizer, map(Deadly, texts), workers=2))


def test_tokenizer_and_data_rooms_import_no_jax():
    modules = "lm.tokenizer, lm.data.prepare, lm.data.loader, lm.data.windows, lm.data.prefetch, lm.data.card, lm.commands.data"
    check = f"import sys, {modules}; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


ENDLESS = """
import itertools, signal
from lm.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer, encode_documents
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is ignored
    ranks = {bytes([value]): value for value in range(256)}
    tokenizer = Tokenizer("bytes", PATTERNS["gpt4"], ranks, {END_OF_TEXT: 256})
    for _ in encode_documents(tokenizer, itertools.repeat("word " * 100_000), workers=2):
        print("encoding", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent(tmp_path, how):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout.readline() == "encoding\n"
    # Ctrl-C goes to the whole process group; kill -9 to the parent alone.
    os.killpg(parent.pid, how) if how == signal.SIGINT else os.kill(parent.pid, how)
    _, errors = parent.communicate(timeout=30)  # returns when every process has closed its end
    assert errors.count("Traceback") == (1 if how == signal.SIGINT else 0)
