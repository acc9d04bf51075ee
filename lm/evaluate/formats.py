"""Task files to items: the published JSONL schemas, llm-foundry's, HellaSwag's text form, and a plain one of our own.

| a row has | it is |
|---|---|
| `context`, `choices`, `gold` | a question and its answers: our own form, for anything |
| `context`, `continuation` | a text and what must come next: our own form, and llm-foundry's |
| `query`, `choices`, `gold` | llm-foundry's multiple choice |
| `context_options`, `continuation`, `gold` | llm-foundry's schema (Winograd): which beginning makes the end likelier |
| `sentence_good`, `sentence_bad` | BLiMP (Warstadt et al. 2020) |
| `ctx_a`, `ctx_b`, `activity_label`, `endings`, `label` | HellaSwag (Zellers et al. 2019) |
| `sentence`, `option1`, `option2`, `answer` | Winogrande (Sakaguchi et al. 2021) |
| `goal`, `sol1`, `sol2`, `label` | PIQA (Bisk et al. 2020) |
| `question`, `choices` (`text`, `label`), `answerKey` | ARC (Clark et al. 2018) |
| `premise`, `choice1`, `choice2`, `question`, `label` | COPA (Roemmele et al. 2011) |
| `text` | LAMBADA (Paperno et al. 2016): the last word must come next |

A row may have an `id` and, in our own form, a `delimiter` (one space by default). Prompts and spaces are those of
lm-evaluation-harness, so accuracies compare.
"""

import bz2
import dataclasses
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lm.errors import DamagedFileError, UsageError
from lm.storage import read_bytes


@dataclasses.dataclass(frozen=True)
class Item:
    """A question: which continuation is likeliest, or, with one, whether greedy decoding gives it.

    Choice i is `delimiter + choices[i]` after `contexts[i]`, or after `contexts[0]` if there is only that. `gold` is
    the right one's index.
    """

    id: str
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int
    delimiter: str = " "

    def context(self, choice: int) -> str:
        """Return the text before a choice."""
        return self.contexts[choice if len(self.contexts) > 1 else 0]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the (context, continuation) of each choice."""
        return [(self.context(i), self.delimiter + choice) for i, choice in enumerate(self.choices)]


# Tasks of llm-foundry's files whose question is followed by a line "Answer:" (DCLM's eval/heavy.yaml).
ANSWERED = {"arc_challenge", "arc_easy", "boolq", "gpqa_diamond", "gpqa_main", "jeopardy", "logi_qa", "mmlu", "piqa"}


def read_items(path: str, task: str) -> list[Item]:
    """Return the items of a task's file: JSON lines or HellaSwag's text, plain, .gz or .bz2.

    Raises:
      UsageError: no such file, no items, or a row of no form that is known.
      DamagedFileError: not UTF-8, not JSON, or damaged compression.
    """
    text = _text(path)
    stem = re.sub(r"\.(gz|bz2)$", "", path)
    if stem.endswith(".txt"):
        rows: Iterator[tuple[int, Any]] = _hellaswag_text(path, text)
    else:
        rows = _json_lines(path, text)
    items = []
    for number, row in rows:
        try:
            item = _item(row, f"{len(items)}", task)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UsageError(f'"{path}" line {number}: {type(error).__name__}: {error}.') from error
        if item is None:
            raise UsageError(f'"{path}" line {number}: no known form; lm/evaluate/formats.py lists them.')
        if not 0 <= item.gold < len(item.choices):
            raise UsageError(f'"{path}" line {number}: gold {item.gold} of {len(item.choices)} choices.')
        items.append(item)
    if not items:
        raise UsageError(f'"{path}" has no items.')
    if len({item.id for item in items}) < len(items):
        raise UsageError(f'"{path}": two items have the same id.')
    return items


def _text(path: str) -> str:
    data = read_bytes(path)
    try:
        if path.endswith(".bz2"):
            data = bz2.decompress(data)
        elif path.endswith(".gz"):
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise DamagedFileError(f'"{path}" cannot be read: {error}.') from error


def _json_lines(path: str, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 is a letter here
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise DamagedFileError(f'"{path}" line {number} is not JSON: {error}.') from error


def _hellaswag_text(path: str, text: str) -> Iterator[tuple[int, Any]]:
    """Six lines an item: context, index of the right ending, four endings."""
    lines = text.rstrip("\n").split("\n")
    if len(lines) % 6:
        raise UsageError(f'"{path}" has {len(lines)} lines; expected six per item (context, index, four endings).')
    for first in range(0, len(lines), 6):
        context, gold, *endings = lines[first : first + 6]
        yield first + 1, {"context": context, "gold": gold, "choices": endings}


def _item(row: Mapping[str, Any], number: str, task: str) -> Item | None:
    name = str(row.get("id", row.get("ind", number)))
    for fields, make in _FORMS:
        if all(field in row for field in fields):
            item = make(row, task)
            return dataclasses.replace(item, id=name)
    return None


def _plain_choices(row, _) -> Item:
    return Item("", (row["context"],), tuple(row["choices"]), int(row["gold"]), row.get("delimiter", " "))


def _plain_continuation(row, _) -> Item:
    return Item("", (row["context"],), (row["continuation"],), 0, row.get("delimiter", " "))


def _foundry_choices(row, task) -> Item:
    query = row["query"].strip() + ("\nAnswer:" if task in ANSWERED else "")
    return Item("", (query,), tuple(row["choices"]), int(row["gold"]))


def _schema(row, _) -> Item:
    options = tuple(row["context_options"])
    return Item("", options, (row["continuation"],) * len(options), int(row["gold"]))


def _blimp(row, _) -> Item:
    return Item("", ("",), (row["sentence_good"], row["sentence_bad"]), 0)


def _hellaswag(row, _) -> Item:
    def clean(text: str) -> str:
        """Without what WikiHow's markup left, as the harness does."""
        text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
        return text.replace("  ", " ")

    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Item("", (clean(context),), tuple(map(clean, row["endings"])), int(row["label"]))


def _winogrande(row, _) -> Item:
    before, after = row["sentence"].split("_", 1)
    options = row["option1"], row["option2"]
    return Item("", tuple(before + option for option in options), (after.strip(),) * 2, int(row["answer"]) - 1)


def _piqa(row, _) -> Item:
    return Item("", (f"Question: {row['goal']}\nAnswer:",), (row["sol1"], row["sol2"]), int(row["label"]))


def _arc(row, _) -> Item:
    choices = row["choices"]
    context = f"Question: {row['question']}\nAnswer:"
    return Item("", (context,), tuple(choices["text"]), list(choices["label"]).index(row["answerKey"]))


def _copa(row, _) -> Item:
    connector = {"cause": "because", "effect": "therefore"}[row["question"]]
    choices = (row[name][0].lower() + row[name][1:] for name in ("choice1", "choice2"))
    return Item("", (f"{row['premise'].strip()[:-1]} {connector}",), tuple(choices), int(row["label"]))


def _lambada(row, _) -> Item:
    context, word = row["text"].rsplit(" ", 1)
    return Item("", (context,), (word,), 0)


_FORMS: list[tuple[tuple[str, ...], Callable[[Mapping[str, Any], str], Item]]] = [
    (("context", "choices", "gold"), _plain_choices),
    (("context", "continuation"), _plain_continuation),
    (("query", "choices", "gold"), _foundry_choices),
    (("context_options", "continuation", "gold"), _schema),
    (("sentence_good", "sentence_bad"), _blimp),
    (("ctx_a", "ctx_b", "activity_label", "endings", "label"), _hellaswag),
    (("sentence", "option1", "option2", "answer"), _winogrande),
    (("goal", "sol1", "sol2", "label"), _piqa),
    (("question", "choices", "answerKey"), _arc),
    (("premise", "choice1", "choice2", "question", "label"), _copa),
    (("text",), _lambada),
]
