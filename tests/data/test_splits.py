"""Splits never overlap."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.sources import Document
from lm.data.splits import SPLITS, cut_by_position, split_documents, split_of

fractions = st.floats(0, 0.45)


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1), validation=fractions, test=fractions)
def test_a_single_document_is_cut_into_parts_that_join_to_it(text, validation, test):
    parts = list(cut_by_position(Document(text, "x"), validation, test))
    assert "".join(part.text for _, part in parts) == text
    assert [split for split, _ in parts] == [split for split in SPLITS if split in dict(parts)]


def test_the_test_split_of_a_single_file_is_its_last_tenth():
    text = "".join(chr(97 + place % 26) for place in range(1003))
    parts = dict(split_documents(lambda: iter([Document(text, "x")]), 0.05, 0.1))
    assert parts["test"].text == text[902:]  # where int(0.9 n) cuts, as nanoGPT does
    assert parts["train"].text + parts["validation"].text == text[:902]
    assert (parts["test"].id, parts["test"].start) == ("x", 902)


def test_copies_of_a_document_fall_on_the_same_side():
    documents = [Document(f"document {number % 50}", str(number)) for number in range(200)]
    sides = {}
    for split, document in split_documents(lambda: iter(documents), 0.3, 0.2):
        sides.setdefault(document.text, set()).add(split)
    assert len(sides) == 50
    assert all(len(splits) == 1 for splits in sides.values())
    assert {split for splits in sides.values() for split in splits} == set(SPLITS)


def test_a_document_stays_in_its_split_whatever_comes_beside_it():
    documents = [Document(f"document {number}", str(number)) for number in range(40)]
    alone = {d.text: split for split, d in split_documents(lambda: iter(documents[:20]), 0.3, 0.2)}
    together = {d.text: split for split, d in split_documents(lambda: iter(documents), 0.3, 0.2)}
    assert all(together[text] == split for text, split in alone.items())


def test_a_larger_validation_split_takes_no_test_documents():
    texts = [f"document {number}" for number in range(500)]
    test = {text for text in texts if split_of(text, 0.05, 0.1) == "test"}
    assert test == {text for text in texts if split_of(text, 0.5, 0.1) == "test"}
    assert 30 < len(test) < 75


def test_empty_documents_are_left_out():
    documents = [Document("", "a"), Document("text", "b"), Document("", "c")]
    assert [d.id for _, d in split_documents(lambda: iter(documents), 0, 0)] == ["b"]
    assert list(split_documents(lambda: iter(documents[:1]), 0.1, 0.1)) == []
