"""A run's checkpoint scores documents for a corpus as `lm eval` scores them."""

import pytest

from lm.commands.opened import open_run
from lm.errors import UsageError
from lm.evaluate.document_scores import open_scorer


@pytest.mark.slow
def test_a_checkpoint_scores_documents_as_opening_it_does(finished):
    texts = ["the first document", "and another one, a little longer than the first " * 5]
    scores = open_scorer(str(finished))(texts)
    opened = open_run(str(finished))
    length = opened.config.data.sequence_length
    assert scores[0] == pytest.approx(opened.loss(texts[0])["bits_per_byte"], rel=1e-4)
    whole = opened.loss(texts[1], stride=length if len(opened.tokenizer.encode_document(texts[1])) > length else None)
    assert scores[1] == pytest.approx(whole["bits_per_byte"], rel=1e-4)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no run in"):
        open_scorer(str(tmp_path))
