"""Decontamination: pieces of evaluation sets are found, however they are written; nothing else is dropped."""

import bz2
import glob
import json
import os

import pytest

from lm.corpus.decontamination import SUFFIX, Decontamination, build_index, normalized_words, set_names
from lm.corpus.record import Record
from lm.corpus.task import Task
from lm.errors import DamagedFileError, LmError, UsageError
from lm.storage import read_bytes

LONG = "When the ferry had left the harbour, nobody on the pier noticed that an old grey dog was still waiting."
SHORT = "A kettle of tea boils faster than it cools"  # 9 words
TINY = "The cat sat on the mat"
FILLER = "Some other words stand here, and they have nothing to do with any question that was ever asked of anyone. "


def index_of(folder, n=13, **files):
    paths = []
    for name, content in files.items():
        path = folder / name.replace("_dot_", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(str(path))
    out = str(folder / "index")
    stats = Task(out, build_index, {"paths": paths, "words": n}).run()
    return out + SUFFIX, stats


def rule(step, text):
    rejection = step(Record("1", text))
    return rejection and rejection.rule


def test_a_piece_of_thirteen_words_is_found_in_any_case_and_punctuation(tmp_path):
    line = json.dumps(
        {"query": LONG, "choices": [SHORT, TINY], "nested": {"deep": [[FILLER + "And one more."]]}, "gold": 0}
    )
    path, stats = index_of(tmp_path, questions_dot_jsonl=line + "\n")
    step = Decontamination(path)
    words = LONG.split()
    assert rule(step, f"{FILLER} “{' '.join(words[3:16]).upper()}” – {FILLER}") == "decontamination/questions"
    assert rule(step, "x " + "\n".join(words[3:16]) + " y") == "decontamination/questions"
    assert rule(step, f"x {' '.join(words[3:15])} y") is None  # twelve
    assert rule(step, FILLER) == "decontamination/questions"  # at any depth
    assert step.counts == {"questions": 3}
    assert stats["sets"]["questions"]["texts"] == 4


def test_shorter_texts_are_looked_for_as_a_whole_and_the_shortest_not_at_all(tmp_path):
    path, stats = index_of(tmp_path, short_dot_txt=f"{SHORT}\n\n{TINY}\n")
    step = Decontamination(path)
    assert rule(step, f"One, two. {SHORT}! Three.") == "decontamination/short"
    assert rule(step, SHORT) == "decontamination/short"
    assert rule(step, f"One {SHORT.replace('boils', 'heats')} Three.") is None
    assert rule(step, TINY) is None
    assert stats["sets"]["short"]["too_short"] == 1


def test_a_text_file_has_a_text_per_line_and_a_paragraph_goes_on_over_line_ends(tmp_path):
    words = LONG.split()
    path, _ = index_of(
        tmp_path, a_dot_txt_dot_bz2=bz2.compress(f"{' '.join(words[:7])}\n{' '.join(words[7:])}\n".encode())
    )
    assert rule(Decontamination(path), LONG) == "decontamination/a"
    assert rule(Decontamination(path), " ".join(words[2:15])) == "decontamination/a"


def test_the_first_set_has_what_several_hold_and_the_one_with_most_is_named(tmp_path):
    path, stats = index_of(tmp_path, one_dot_txt=LONG, two_dot_txt=f"{LONG}\n\n{FILLER * 2}")
    step = Decontamination(path)
    assert rule(step, LONG) == "decontamination/one"
    assert rule(step, LONG + FILLER * 2) == "decontamination/two"
    assert stats["sets"]["one"]["ngrams"] == len(LONG.split()) - 12
    assert set_names(["/x/a/test.jsonl", "/x/b/test.jsonl.gz"]) == ["a/test", "b/test"]


def test_a_share_of_a_document_may_be_allowed(tmp_path):
    path, _ = index_of(tmp_path, a_dot_txt=LONG)
    text = FILLER * 20 + LONG
    share = (len(LONG.split()) - 12) / (len(normalized_words(text)) - 12)
    assert Decontamination(path)(Record("1", text)).value == pytest.approx(share, abs=1e-6)
    assert Decontamination(path, share * 1.01)(Record("1", text)) is None
    assert Decontamination(path, share * 0.99)(Record("1", text)) is not None


def test_an_index_is_the_same_for_the_same_sets_and_an_empty_one_finds_nothing(tmp_path):
    path, _ = index_of(tmp_path, a_dot_txt=f"{LONG}\n{FILLER}")
    content = read_bytes(path)
    assert read_bytes(index_of(tmp_path, a_dot_txt=f"{LONG}\n{FILLER}")[0]) == content
    (tmp_path / "other").mkdir()
    path, _ = index_of(tmp_path / "other", a_dot_txt="")
    assert rule(Decontamination(path), LONG) is None
    assert rule(Decontamination(path), "") is None


def test_bad_files_are_refused_by_name(tmp_path):
    with pytest.raises(LmError, match="line 2 is not UTF-8"):
        index_of(tmp_path, a_dot_txt=b"abc\n\xff\xfe\n")
    with pytest.raises(UsageError, match="no file"):
        build_index({"paths": [str(tmp_path / "none.jsonl")], "words": 13}, str(tmp_path / "x"), lambda done: None)
    path, _ = index_of(tmp_path, a_dot_txt=LONG)
    content = read_bytes(path)
    damaged = tmp_path / "damaged.ngrams"
    damaged.write_bytes(content[:-1])
    with pytest.raises(DamagedFileError, match="damaged"):
        Decontamination(str(damaged))


@pytest.mark.real_data
def test_nothing_in_a_crawl_or_a_novel_is_dropped_and_planted_questions_are_found(real_data, tmp_path):
    paths = sorted(glob.glob(os.path.join(real_data, "eval", "**", "*.jsonl"), recursive=True))
    paths.append(os.path.join(real_data, "eval", "hellaswag_val_full.txt.bz2"))
    build_index({"paths": paths, "words": 13}, str(tmp_path / "i"), lambda done: None)
    step = Decontamination(str(tmp_path / "i") + SUFFIX)
    with open(os.path.join(real_data, "web", "c4-1000.jsonl"), encoding="utf-8") as file:
        pages = [json.loads(line)["text"] for line in file]
    with open(os.path.join(real_data, "books", "pride_and_prejudice.txt"), encoding="utf-8") as file:
        pages.append(file.read())
    assert [rule(step, text) for text in pages] == [None] * 1001  # looked at: there is no true overlap
    with open(os.path.join(real_data, "eval", "core", "language_understanding", "lambada_openai.jsonl")) as file:
        items = [max((v for v in json.loads(line).values() if isinstance(v, str)), key=len) for line in file]
    found = [
        rule(step, page[:500] + " " + item + " " + page[500:]) for page, item in zip(pages[:100], items, strict=False)
    ]
    assert found == ["decontamination/lambada_openai"] * 100
