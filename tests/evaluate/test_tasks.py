"""Task files to questions, in the words of the published prompts."""

import bz2
import gzip
import json
import os

import pytest

from lm.errors import DamagedFileError, UsageError
from lm.evaluate.formats import Item, read_items
from lm.evaluate.tasks import Encoder, find_tasks, load_task
from lm.tokenizer import Tokenizer

ROWS = {
    "own": (
        {"id": "q1", "context": "1 + 1 =", "choices": ["2", "3"], "gold": 0},
        Item("q1", ("1 + 1 =",), ("2", "3"), 0),
    ),
    "own, joined otherwise": (
        {"context": "un", "choices": ["do", "cat"], "gold": 0, "delimiter": ""},
        Item("0", ("un",), ("do", "cat"), 0, ""),
    ),
    "continuation": ({"context": "To be or not to", "continuation": "be"}, Item("0", ("To be or not to",), ("be",), 0)),
    "schema": (
        {
            "context_options": ["The cat ate since the cat", "The cat ate since the mouse"],
            "continuation": "was hungry.",
            "gold": 0,
        },
        Item("0", ("The cat ate since the cat", "The cat ate since the mouse"), ("was hungry.",) * 2, 0),
    ),
    "blimp": (
        {"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "UID": "x", "pairID": "7"},
        Item("0", ("",), ("Cats sleep.", "Cats sleeps."), 0),
    ),
    "hellaswag": (
        {
            "ind": 24,
            "activity_label": "Bread",
            "ctx_a": "A man kneads.",
            "ctx_b": "the dough",
            "label": 1,
            "endings": ["rises [title] high", "[step] falls", "a  b", "c"],
        },
        Item("24", ("Bread: A man kneads. The dough",), ("rises. high", " falls", "a b", "c"), 1),
    ),
    "winogrande": (
        {"sentence": "The cup fits not in the box as the _ is big.", "option1": "cup", "option2": "box", "answer": "1"},
        Item(
            "0",
            ("The cup fits not in the box as the cup", "The cup fits not in the box as the box"),
            ("is big.",) * 2,
            0,
        ),
    ),
    "piqa": (
        {"goal": "Open a jar", "sol1": "Twist.", "sol2": "Wait.", "label": 0},
        Item("0", ("Question: Open a jar\nAnswer:",), ("Twist.", "Wait."), 0),
    ),
    "arc": (
        {
            "id": "M1",
            "question": "What is hot?",
            "choices": {"text": ["Ice", "Fire"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        Item("M1", ("Question: What is hot?\nAnswer:",), ("Ice", "Fire"), 1),
    ),
    "copa": (
        {
            "premise": "It rained.",
            "choice1": "The road got wet.",
            "choice2": "I slept.",
            "question": "effect",
            "label": 0,
        },
        Item("0", ("It rained therefore",), ("the road got wet.", "i slept."), 0),
    ),
    "lambada": ({"text": "She took her hat"}, Item("0", ("She took her",), ("hat",), 0)),
}


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("form", ROWS)
def test_every_form_gives_the_harness_prompt(form, tmp_path):
    row, expected = ROWS[form]
    (item,) = read_items(write(tmp_path / "task.jsonl", row), "task")
    assert item == expected


def test_llm_foundrys_questions_are_followed_by_answer_where_dclm_says_so(tmp_path):
    path = write(tmp_path / "t.jsonl", {"query": "Question: Why?\n", "choices": ["So", "No"], "gold": 1})
    assert read_items(path, "piqa")[0].contexts == ("Question: Why?\nAnswer:",)
    assert read_items(path, "copa")[0].contexts == ("Question: Why?",)
    assert read_items(path, "copa")[0].pairs() == [("Question: Why?", " So"), ("Question: Why?", " No")]


def test_hellaswags_text_form_is_six_lines_an_item(tmp_path):
    lines = ["A man sits. he", "2", "a", "b", "c", "d"] * 2
    text = ("\n".join(lines) + "\n").encode()
    for name, data in {"h.txt": text, "h.txt.bz2": bz2.compress(text), "h.txt.gz": gzip.compress(text)}.items():
        (tmp_path / name).write_bytes(data)
        items = read_items(str(tmp_path / name), "hellaswag")
        assert items == [Item(str(i), ("A man sits. he",), ("a", "b", "c", "d"), 2) for i in range(2)]
    (tmp_path / "h.txt").write_text("one\n2\n")
    with pytest.raises(UsageError, match="six per item"):
        read_items(str(tmp_path / "h.txt"), "hellaswag")
    (tmp_path / "notes.txt").write_text("prose\n" * 6)
    with pytest.raises(UsageError, match="line 1: ValueError"):
        read_items(str(tmp_path / "notes.txt"), "notes")


def test_a_row_that_is_wrong_is_named_by_its_line(tmp_path):
    good = {"context": "a", "choices": ["b", "c"], "gold": 0}
    with pytest.raises(UsageError, match="line 2: no known form"):
        read_items(write(tmp_path / "a.jsonl", good, {"question": "a"}), "a")
    with pytest.raises(UsageError, match="line 2: gold 5 of 2 choices"):
        read_items(write(tmp_path / "a.jsonl", good, good | {"gold": 5}), "a")
    with pytest.raises(UsageError, match="same id"):
        read_items(write(tmp_path / "a.jsonl", good | {"id": 1}, good | {"id": 1}), "a")
    (tmp_path / "a.jsonl").write_text("{oops\n")
    with pytest.raises(DamagedFileError, match="line 1 is not JSON"):
        read_items(str(tmp_path / "a.jsonl"), "a")
    (tmp_path / "a.jsonl.bz2").write_bytes(b"BZh9 no")
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_items(str(tmp_path / "a.jsonl.bz2"), "a")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UsageError, match="no items"):
        read_items(str(tmp_path / "a.jsonl"), "a")


def test_tasks_are_found_by_name_at_any_depth(tmp_path):
    for name in (
        "core/piqa.jsonl",
        "blimp/wh.jsonl",
        "blimp/npi.jsonl",
        "hellaswag_val_full.txt.bz2",
        "a/x.jsonl",
        "b/x.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    folder = str(tmp_path)
    join = os.path.join
    assert find_tasks("piqa", folder) == [("piqa", join(folder, "core", "piqa.jsonl"))]
    assert find_tasks("hellaswag", folder) == [("hellaswag", join(folder, "hellaswag_val_full.txt.bz2"))]
    assert [name for name, _ in find_tasks("blimp", folder)] == ["blimp_npi", "blimp_wh"]
    assert find_tasks("blimp_wh", folder) == [("blimp_wh", join(folder, "blimp", "wh.jsonl"))]
    assert find_tasks("some/where.jsonl", None) == [("where", "some/where.jsonl")]
    with pytest.raises(UsageError, match='Did you mean "piqa"'):
        find_tasks("pika", folder)
    with pytest.raises(UsageError, match="both have the name"):
        find_tasks("x", folder)
    with pytest.raises(UsageError, match="give --tasks-data"):
        find_tasks("piqa", None)


def questions(path, count: int = 6) -> str:
    return write(path, *({"context": f"q{i}", "choices": [f"a{i}", f"b{i}"], "gold": i % 2} for i in range(count)))


def test_worked_examples_are_the_same_for_all_and_never_the_question_itself(tmp_path):
    path = questions(tmp_path / "t.jsonl")
    task = load_task("t", path, num_fewshot=2)
    firsts = [item.contexts[0].split("\n\n")[:-1] for item in task.items]
    for i, (item, shown) in enumerate(zip(task.items, firsts, strict=True)):
        assert len(shown) == 2
        assert item.contexts[0].endswith(f"\n\nq{i}")
        assert all(not example.startswith(f"q{i} ") for example in shown)
        assert all(example in {f"q{j} {'ab'[j % 2]}{j}" for j in range(6)} for example in shown)
    assert len({tuple(shown) for shown in firsts}) <= 3
    with pytest.raises(UsageError, match="has 6 items"):
        load_task("t", path, num_fewshot=6)


def test_a_task_is_itself_whatever_the_limit_and_another_in_other_words(tmp_path):
    path = questions(tmp_path / "t.jsonl")
    whole = load_task("t", path)
    assert len(load_task("t", path, limit=3).items) == 3
    assert load_task("t", path, limit=3).fingerprint == whole.fingerprint
    assert load_task("t", path, num_fewshot=1).fingerprint != whole.fingerprint
    assert load_task("t", questions(tmp_path / "u.jsonl", 7)).fingerprint != whole.fingerprint


def test_guessing_is_right_as_often_as_core_says_or_as_there_are_choices(tmp_path):
    path = questions(tmp_path / "t.jsonl")
    assert load_task("t", path).baseline == 0.5
    assert load_task("boolq", path).baseline == 0.62
    assert load_task("own", write(tmp_path / "c.jsonl", {"context": "a", "continuation": "b"})).baseline == 0


@pytest.fixture
def tokenizer():
    """Bytes, and " a" as one token."""
    ranks = {bytes([i]): i for i in range(256)} | {b" a": 256}
    return Tokenizer("bytes", r"\s?\S+|\s+", ranks, {"<|endoftext|>": 257})


def test_texts_are_cut_where_the_harness_cuts_them(tokenizer):
    encode = Encoder(tokenizer)
    assert encode("b", " a") == ([98], [256])
    assert encode("b ", "a") == ([98], [256])  # the context's last space belongs to the continuation
    assert encode("", "ab") == ([257], [97, 98])
    assert Encoder(tokenizer, add_bos=True)("b", " a") == ([257, 98], [256])
    assert Encoder(tokenizer, add_bos=True)("", "ab") == ([257], [97, 98])


COUNTS = {
    "blimp_anaphor_number_agreement": (1000, 0.5),
    "blimp_wh_island": (1000, 0.5),
    "copa": (100, 0.5),
    "piqa": (1838, 0.5),
    "arc_easy": (2376, 0.25),
    "lambada_openai": (5153, 0.0),
    "hellaswag": (10042, 0.25),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", COUNTS)
def test_published_files_are_read_whole(real_data, name):
    ((task, path),) = find_tasks(name, os.path.join(real_data, "eval"))
    loaded = load_task(task, path)
    count, baseline = COUNTS[name]
    assert loaded.total == count
    assert loaded.baseline == baseline
    assert loaded.is_choice == (name != "lambada_openai")
    assert all(continuation.startswith(" ") for item in loaded.items for _, continuation in item.pairs())
