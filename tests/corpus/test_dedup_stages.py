"""Deduplication as a whole: what goes, what stays, and that nothing else decides."""

import os
import random

import pytest

from experiments.benchmarks import near_duplicates
from lm.corpus.dedup.shingles import normalize
from lm.corpus.record import Record
from lm.errors import DamagedFileError
from tests.corpus.dedup_corpus import (
    changed,
    deduplicate,
    kept,
    kept_ids,
    prose,
    records,
    run_in_order,
    write_parts,
)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_the_same_words_in_two_sources_stay_once_and_others_are_not_touched(tmp_path):
    same = prose(1)
    parts = write_parts(
        tmp_path, records("wiki", [prose(2), same]), records("web", [same.upper().replace(" ", ", ", 9), prose(3)])
    )
    result = deduplicate(tmp_path, parts)
    assert kept_ids(result) == [["wiki:0"], ["web:0", "web:1"]]  # with the commas it is longer
    assert result.about["exact"] == 1 and result.about["near"] == 0
    assert result.about["between"] == [["wiki", "web", 1]]
    assert [step["documents"] for step in result.kept[0][1]["steps"]] == [2, 1]
    assert result.parts[0].documents == 1 and result.parts[0].bytes == len(prose(2))
    task, stats = result.kept[0]
    assert task.arguments["name"] == "wiki" and stats["rejected"] == {"dedup/exact": 1}
    assert [(step["name"], step["documents"]) for step in stats["steps"]] == [("read", 2), ("dedup", 1)]


def test_near_duplicates_go_above_the_threshold_and_stay_below(tmp_path):
    text = prose(1, 200)  # 196 shingles
    near, far = changed(text, 2), changed(text, 9, seed=1)  # 186/206 = 0.90 and 151/241 = 0.63 of them shared
    parts = write_parts(tmp_path, records("a", [text, prose(2)]), records("b", [near]), records("c", [far]))
    result = deduplicate(tmp_path, parts)
    assert result.about["near"] == 1 and result.about["exact"] == 0
    assert kept_ids(result) == [["a:1"], ["b:0"], ["c:0"]]  # b:0 is the longer copy
    (pair,) = result.about["pairs"]
    assert pair["jaccard"] == pytest.approx(186 / 206)
    assert [pair[side]["id"] for side in "ab"] == ["a:0", "b:0"] and pair["a"]["text"] == text[:600]


def test_quality_chooses_the_copy_then_length_then_order(tmp_path):
    text = prose(1)
    good = records("b", [text[:-1] + text[-1].upper()], quality=0.9)
    parts = write_parts(tmp_path, records("a", [text + "!!!"], quality=0.2), good, records("c", [text]))
    assert kept_ids(deduplicate(tmp_path / "quality", parts)) == [[], ["b:0"], []]
    parts = write_parts(tmp_path, records("a", [text]), records("b", [text + "!"]), records("c", [text + "?"]))
    assert kept_ids(deduplicate(tmp_path / "length", parts)) == [[], ["b:0"], []]


def test_a_chain_of_near_duplicates_is_one_cluster(tmp_path):
    texts = [prose(1, 200)]
    for step in range(3):
        words = texts[-1].split()
        for place in (10, 25, 40):  # 181 of 211 shingles are the last one's: 0.86; of 226 166 that before: 0.73
            words[place + 50 * step] = f"changed{step}at{place}"
        texts.append(" ".join(words))
    parts = write_parts(tmp_path, records("a", texts))
    result = deduplicate(tmp_path, parts)
    assert result.about["clusters"]["sizes"] == {"4": 1}
    assert result.about["verified"] == 3  # only neighbours are alike
    assert result.about["near"] == 3 and len(kept_ids(result)[0]) == 1


def test_a_paragraph_stays_where_it_stands_first(tmp_path):
    repeated, other = prose(1, 60), prose(2, 60)
    texts = [f"{prose(3)}\n\n{repeated}\n\nend", f"{repeated.upper()}\n\n{prose(4)}", f"{repeated}\n \n{repeated}"]
    short = f"{prose(5)}\n\nshort ones may repeat"
    parts = write_parts(
        tmp_path,
        records("web", texts),
        records("code", [f"{repeated}\n\n{prose(6)}"]),
        records("wiki", [short, f"{prose(7)}\n\nshort ones may repeat\n\n{other}\n{other}"]),
    )
    result = deduplicate(tmp_path, parts)
    assert [[record.text for record in some] for some in kept(result)] == [
        [texts[0], prose(4)],  # the third lost everything
        [f"{repeated}\n\n{prose(6)}"],
        [short, f"{prose(7)}\n\nshort ones may repeat\n\n{other}\n{other}"],
    ]
    assert result.about["paragraphs"] == 3 and result.about["emptied"] == 1
    assert [part.documents for part in result.parts] == [2, 1, 2]


def test_paragraphs_of_dropped_documents_do_not_count_as_first(tmp_path):
    repeated = prose(1, 60)
    dropped = f"{prose(2)}\n\n{repeated}"
    parts = write_parts(tmp_path, records("a", [dropped]), records("b", [f"{prose(3)}\n\n{repeated}", dropped + " !"]))
    result = deduplicate(tmp_path, parts)
    assert [record.text for some in kept(result) for record in some] == [f"{prose(3)}\n\n{repeated}", prose(2)]


def test_lines_are_paragraphs_where_no_lines_are_blank(tmp_path):
    parts = write_parts(tmp_path, records("a", [f"{prose(1)}\n{prose(2)}", f"{prose(3)}\n{prose(1)}\n{prose(4)}"]))
    assert kept(deduplicate(tmp_path, parts))[0][1].text == f"{prose(3)}\n{prose(4)}"


def test_documents_without_words_are_the_same_only_if_their_text_is(tmp_path):
    parts = write_parts(tmp_path, records("a", ["+++", "---", "+++", ""]), records("b", []))
    assert kept_ids(deduplicate(tmp_path, parts)) == [["a:0", "a:1", "a:3"], []]


@pytest.mark.parametrize("options", [{"exact": False}, {"near": False}, {"exact": False, "near": False}])
def test_what_is_not_asked_for_is_not_done(tmp_path, options):
    text = prose(1, 200)
    parts = write_parts(tmp_path, records("a", [text, text, changed(text, 2)]))
    result = deduplicate(tmp_path, parts, paragraphs=False, **options)
    left = {("exact",): 1, ("near",): 2, ("exact", "near"): 3}[tuple(options)]
    assert sum(map(len, kept_ids(result))) == left


def messy_parts(folder):
    """Twelve parts of three sources: near and exact copies and repeated paragraphs at random."""
    chance = random.Random(5)
    contents = []
    for part in range(12):
        texts = []
        for _ in range(8):
            text = prose(chance.randrange(40), 150)
            texts.append(changed(text, 1, chance.randrange(3)) if chance.random() < 0.5 else text)
            if chance.random() < 0.4:
                texts[-1] += f"\n\n{prose(1000 + chance.randrange(5), 50)}"
        source = ("wiki", "web", "code")[part // 4]
        contents.append([Record(f"{part}:{n}", text, source) for n, text in enumerate(texts)])
    return write_parts(folder, *contents)


def outputs(result):
    contents = []
    for part in result.parts:
        with open(part.path, "rb") as file:
            contents.append(file.read())
    return contents, result.about, [stats for _, stats in result.kept]


def test_the_order_of_execution_and_the_number_of_partitions_change_nothing(tmp_path):
    parts = messy_parts(tmp_path)
    straight = outputs(deduplicate(tmp_path / "straight", parts))
    backwards = deduplicate(tmp_path / "back", parts, lambda stage, tasks: run_in_order(stage, tasks, reversed))
    assert outputs(backwards) == straight
    contents, about, stats = outputs(deduplicate(tmp_path / "wide", parts, partitions=7))
    assert contents == straight[0] and stats == straight[2]
    assert about | {"parameters": 0} == straight[1] | {"parameters": 0}
    assert about["near"] > 5 and about["exact"] > 5 and about["paragraphs"] > 5


@pytest.mark.parametrize("stage", ["signatures", "join", "extract", "verify", "cluster", "paragraphs", "keep"])
def test_killed_in_any_stage_the_same_call_ends_with_the_same_bytes(tmp_path, stage):
    class Killed(BaseException):
        pass

    parts = messy_parts(tmp_path)[::3]
    straight = outputs(deduplicate(tmp_path / "straight", parts))

    def until(name, tasks):
        if name != stage:
            return run_in_order(name, tasks)
        run_in_order(name, tasks[: len(tasks) // 2])
        last = tasks[len(tasks) // 2]
        os.makedirs(os.path.dirname(last.out), exist_ok=True)
        last.function(last.arguments, last.out, lambda done: None)  # wrote its files, and not that it is done
        raise Killed

    with pytest.raises(Killed):
        deduplicate(tmp_path / "killed", parts, until)
    redone = []

    def again(name, tasks):
        redone.extend(task.out for task in tasks if name == "signatures" and task.result() is None)
        return run_in_order(name, tasks)

    assert outputs(deduplicate(tmp_path / "killed", parts, again)) == straight
    assert bool(redone) == (stage == "signatures")


def test_a_damaged_file_between_stages_is_named(tmp_path):
    parts = messy_parts(tmp_path)[::3]

    def damaging(stage, tasks):
        results = run_in_order(stage, tasks)
        if stage == "verify":
            with open(tasks[0].out + ".npz", "r+b") as file:
                file.truncate(100)
        return results

    with pytest.raises(DamagedFileError, match="00000.npz"):
        deduplicate(tmp_path / "work", parts, damaging)


@pytest.mark.real_data
def test_all_like_paragraphs_of_two_editions_are_found_and_no_others(real_data):
    editions = [near_duplicates.blocks(os.path.join(real_data, "books", name)) for name in near_duplicates.EDITIONS]
    like = near_duplicates.true_pairs(editions, str.split, 0.8)
    found = near_duplicates.compare(editions)
    assert len(like) == 843 and like <= found
    assert found <= near_duplicates.true_pairs(editions, lambda text: normalize(text).split(), 0.8)
