"""Tasks by name or file, their worked examples, and their requests as token ids."""

import dataclasses
import functools
import glob
import hashlib
import json
import os
import random
from collections.abc import Sequence

from lm.errors import UsageError, did_you_mean
from lm.evaluate.core import CORE
from lm.evaluate.formats import Item, read_items
from lm.storage import is_remote

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.bz2", ".txt", ".txt.gz", ".txt.bz2")
# Names of published files that are not their task's.
_FILES = {
    "hellaswag": ("hellaswag_val_full", "hellaswag_val"),
    "jeopardy": ("jeopardy_all",),
    "lambada_openai": ("lambada_test_en", "lambada_test", "lambada"),
    "winograd": ("winograd_wsc",),
    "winogrande": ("winogrande_dev", "dev"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Items that are scored alike.

    Attributes:
      name: as the results call it.
      items: the questions, worked examples and all.
      num_fewshot: worked examples in each.
      path: of the file.
      total: items that the file has.
      fingerprint: 12 hexadecimal digits: the same for the same file put in the same words, whatever the limit.
    """

    name: str
    items: tuple[Item, ...]
    num_fewshot: int
    path: str
    total: int
    fingerprint: str

    @property
    def is_choice(self) -> bool:
        """Whether answers are chosen; else the one continuation must be what greedy decoding gives."""
        return any(len(item.choices) > 1 for item in self.items)

    @property
    def baseline(self) -> float:
        """The accuracy of guessing: CORE's figure, or from the number of choices."""
        if self.name in CORE:
            return CORE[self.name][0]
        return sum(1 / len(item.choices) for item in self.items) / len(self.items) if self.is_choice else 0.0


def find_tasks(name: str, folder: str | None) -> list[tuple[str, str]]:
    """Return (task, path) of what a name stands for: a file, a task's file below `folder`, or `blimp`, all of BLiMP's.

    Raises:
      UsageError: there is no such file, no folder was given, or several files have the name.
    """
    if is_remote(name) or name.endswith(_ENDINGS):
        return [(_stem(name), name)]
    if folder is None:
        raise UsageError(f'--tasks {name}: give --tasks-data DIR, where "{name}.jsonl" is, or the file itself.')
    if not os.path.isdir(folder):
        raise UsageError(f'--tasks-data "{folder}" is not a folder.')
    found: dict[str, list[str]] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "**"), recursive=True)):
        if path.endswith(_ENDINGS):
            found.setdefault(_stem(path), []).append(path)
    blimp = {f"blimp_{stem}": p for stem, p in found.items() if os.path.basename(os.path.dirname(p[0])) == "blimp"}
    if name == "blimp" and blimp:
        return [(task, paths[0]) for task, paths in blimp.items()]
    for stem in (name, *_FILES.get(name, ())):
        paths = found.get(stem) or blimp.get(stem) or []
        if len(paths) > 1:
            raise UsageError(f'--tasks {name}: "{paths[0]}" and "{paths[1]}" both have the name; give the file.')
        if paths:
            return [(name, paths[0])]
    known = [*found, *(task for task, stems in _FILES.items() if any(stem in found for stem in stems))]
    raise UsageError(f'--tasks {name}: no such file below "{folder}".{did_you_mean(name, known)}')


def _stem(path: str) -> str:
    return os.path.basename(path).split(".")[0]


def load_task(name: str, path: str, *, num_fewshot: int = 0, limit: int | None = None, seed: int = 0) -> Task:
    """Return a task from its file.

    Worked examples are items of the file itself, drawn once and the same for all items, so that their tokens are
    computed once; an item is never its own example.

    Args:
      name: the task's; some decide how a question is put (`lm.evaluate.formats`).
      path: of the file.
      num_fewshot: worked examples before each question, two line ends after each.
      limit: the first so many items; None: all.
      seed: of the draw.

    Raises:
      UsageError: the file has fewer items than examples are asked for, or see `lm.evaluate.formats.read_items`.
    """
    items = read_items(path, name)
    if num_fewshot >= len(items):
        raise UsageError(f"--num-fewshot {num_fewshot}: {name} has {len(items)} items, the one that is asked included.")
    asked = items[:limit]
    if num_fewshot:
        drawn = random.Random(seed).sample(items, num_fewshot + 1)
        asked = [_with_examples(item, [e for e in drawn if e is not item][:num_fewshot]) for item in asked]
    identity = json.dumps([[dataclasses.astuple(item) for item in items], num_fewshot, seed])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return Task(name, tuple(asked), num_fewshot, path, len(items), fingerprint)


def _with_examples(item: Item, examples: Sequence[Item]) -> Item:
    shown = "".join(f"{e.context(e.gold)}{e.delimiter}{e.choices[e.gold]}\n\n" for e in examples)
    return dataclasses.replace(item, contexts=tuple(shown + context for context in item.contexts))


class Encoder:
    """Texts to the ids of requests, as lm-evaluation-harness makes them.

    Args:
      tokenizer: a `lm.tokenizer.Tokenizer`.
      add_bos: put the end-of-text token, which opens every document in training, before each context; else it
        stands for an empty context only.
    """

    def __init__(self, tokenizer, *, add_bos: bool = False):
        self._tokenizer, self._add_bos = tokenizer, add_bos
        self._encode = functools.lru_cache(1024)(lambda text: tokenizer.encode(text).tolist())

    def __call__(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return (context ids, continuation ids).

        The text is encoded as a whole and cut where the context's own encoding ends; spaces at the context's end
        belong to the continuation.
        """
        eot = self._tokenizer.eot_id
        if not context:
            return [eot], self._tokenizer.encode(continuation).tolist()
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before, whole = self._encode(bare), self._tokenizer.encode(bare + continuation).tolist()
        bos = [eot] if self._add_bos or not before else []
        return [*bos, *before], whole[len(before) :]
