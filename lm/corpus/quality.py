"""Quality: how much a document is like good text and unlike ordinary text, by a linear classifier of word n-grams.

The model class of fastText's supervised mode (Joulin et al. 2017, arXiv:1607.01759), which DCLM and GPT-3 choose their
web pages with: words and pairs of words, hashed into buckets, and a logistic regression on them. With two classes
fastText's embedding layer changes nothing but the training, so there is none here and the optimum is unique: L-BFGS on
the L2-regularized loss, the same weights for the same texts and seed.

What would be learned instead of quality is taken away first. Texts are lower-cased words, without punctuation, digits
as 0, white space or line ends: neither quotation marks nor hard-wrapped lines tell a source. Documents are cut into
passages of like length for both classes, each scaled to the same norm: length tells nothing. Documents to test on are
held out whole.
"""

import collections
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm import storage
from lm.corpus.config import QualityConfig
from lm.corpus.draw import point
from lm.corpus.hashed_words import hash_ngrams, hash_words
from lm.corpus.record import Record, Rejection
from lm.errors import DamagedFileError, UsageError

PASSAGE_WORDS = 200
_SHORTEST_PASSAGE = 50  # words; a shorter rest is left out
_PASSAGES = 64  # of a document, evenly spread: a book must not drown the rest
_DOCUMENTS = 50_000  # of a class, drawn at random: more do not help, and 1.6 kB of features per passage are held
_PENALTY = 1e-5  # of the squared norm of the weights, beside the mean loss
_DEFAULTS = QualityConfig()
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_WORD = re.compile(r"[^\W\d_]+|\d+")
_DIGITS = re.compile(r"\d+")


def quality_words(text: str) -> list[str]:
    """Return what the classifier sees of a text: lower-cased words, each number as `0`."""
    text = _DIGITS.sub("0", text.lower())
    return _WORD.findall(text)


def passages(words: Sequence[str]) -> list[Sequence[str]]:
    """Cut a document into passages of `PASSAGE_WORDS`; of a long one, 64 that are evenly spread."""
    starts = range(0, max(1, len(words) - _SHORTEST_PASSAGE + 1), PASSAGE_WORDS)
    if len(starts) > _PASSAGES:
        starts = [starts[len(starts) * i // _PASSAGES] for i in range(_PASSAGES)]
    return [words[start : start + PASSAGE_WORDS] for start in starts]


def _buckets(words: Sequence[str], buckets: int) -> np.ndarray:
    """Return the buckets of a passage's words and pairs of words, each once, int32."""
    hashes = np.concatenate(hash_ngrams(hash_words(words), (1, 2)))
    return np.unique((hashes % np.uint64(buckets)).astype(np.int32))


class Classifier:
    """Tells good text from ordinary text.

    Attributes:
      weights: per bucket, f32 `[buckets]`.
      bias: the logit of an empty text.
      about: `auc`, what else was measured on held-out documents, and the heaviest n-grams (plain data).
    """

    def __init__(self, weights: np.ndarray, bias: float, about: Mapping[str, Any] | None = None):
        self.weights, self.bias = np.asarray(weights, np.float32), float(bias)
        self.about: dict[str, Any] = dict(about or {})

    def score(self, text: str) -> float:
        """Return the probability that the text is good, both classes being as common: in [0, 1].

        Of a long text the mean logit of its passages counts. A text without words has 0.
        """
        words = quality_words(text)
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, self._logit(words))))) if words else 0.0

    def _logit(self, words: Sequence[str]) -> float:
        logits = []
        for passage in passages(words):
            buckets = _buckets(passage, len(self.weights))
            logits.append(self.bias + float(self.weights[buckets].sum(dtype=np.float64)) / math.sqrt(len(buckets)))
        return sum(logits) / len(logits)

    def encode(self) -> bytes:
        """Return the classifier's file: the same bytes for the same classifier."""
        about = json.dumps({"bias": self.bias, "about": self.about}, sort_keys=True).encode()
        out = io.BytesIO()
        np.savez_compressed(out, weights=self.weights, about=np.frombuffer(about, np.uint8))
        return out.getvalue()

    def save(self, path: str) -> None:
        """Write it to a file, whole or not at all; raises as `storage.write_atomic`."""
        storage.write_atomic(path, self.encode())

    @staticmethod
    def load(path: str) -> "Classifier":
        """Read a classifier.

        Raises:
          UsageError: there is no such file.
          DamagedFileError: it is none, or damaged.
        """
        content = storage.read_bytes(path)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                weights, about = file["weights"], json.loads(file["about"].tobytes())
            if weights.ndim != 1 or weights.dtype != np.float32:
                raise ValueError(f"weights of {weights.dtype}{list(weights.shape)}")
            return Classifier(weights, about["bias"], about["about"])
        except Exception as error:  # of zipfile, zlib and numpy there are many
            raise DamagedFileError(f'"{path}" is no classifier, or damaged: {error}.') from error


def train_classifier(
    good: Iterable[str], ordinary: Iterable[str], config: QualityConfig = _DEFAULTS, *, seed: int = 0
) -> Classifier:
    """Train a classifier and measure it on documents that it has not seen.

    Both classes count alike, however many documents there are of each. `about` holds `auc` and what `evaluate` returns
    beside it, `training` (documents and passages of each class) and `top_ngrams`.

    Args:
      good: texts of documents worth having, each whole.
      ordinary: texts of documents as they come.
      config: buckets, and the share of documents that is held out.
      seed: of the draw of documents, if a class has more than 50,000, and of which are held out.

    Raises:
      UsageError: too few documents: each class needs two with words, one to learn from and one to test on.
    """
    classes = [_drawn(texts, seed) for texts in (good, ordinary)]
    held = [[_held_out(text, config.held_out, seed) for text in texts] for texts in classes]
    for name, texts, out in zip(("good", "ordinary"), classes, held, strict=True):
        if len(texts) < 2:
            raise UsageError(
                f"config.quality.{name}: {len(texts)} documents with words; a classifier needs at least 2."
            )
        if all(out) or not any(out):  # few documents: take one
            out[:] = [i == 0 for i in range(len(texts))]
    train = [[t for t, out in zip(*pair, strict=True) if not out] for pair in zip(classes, held, strict=True)]
    test = [[t for t, out in zip(*pair, strict=True) if out] for pair in zip(classes, held, strict=True)]
    words = [[passage for text in texts for passage in passages(quality_words(text))] for texts in train]
    classifier = _fit(*words, config.buckets)
    classifier.about = {
        **evaluate(classifier, *test),
        "training": {
            "good": {"documents": len(train[0]), "passages": len(words[0])},
            "ordinary": {"documents": len(train[1]), "passages": len(words[1])},
        },
        "top_ngrams": top_ngrams(classifier, *words),
    }
    return classifier


def _drawn(texts: Iterable[str], seed: int) -> list[str]:
    """Return the texts that have words; of very many a random sample (reservoir sampling, Vitter 1985)."""
    random, kept, seen = np.random.default_rng(seed), [], 0
    for text in texts:
        if not _WORD.search(text):
            continue
        seen += 1
        if len(kept) < _DOCUMENTS:
            kept.append(text)
        elif (place := int(random.integers(seen))) < _DOCUMENTS:
            kept[place] = text
    return kept


def _held_out(text: str, share: float, seed: int) -> bool:
    return point("held out", str(seed), text) < share


def _fit(good: Sequence[Sequence[str]], ordinary: Sequence[Sequence[str]], buckets: int) -> Classifier:
    """Minimize the mean logistic loss of passages, the classes weighing the same, plus the penalty."""
    from scipy.optimize import minimize
    from scipy.sparse import csr_matrix

    rows = [_buckets(passage, buckets) for passage in (*good, *ordinary)]
    lengths = np.array([len(row) for row in rows])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    values = np.repeat(1 / np.sqrt(lengths), lengths)  # every passage has norm 1
    x = csr_matrix((values, np.concatenate(rows), ends), shape=(len(rows), buckets))
    xt = x.T.tocsr()
    sign = np.where(np.arange(len(rows)) < len(good), 1.0, -1.0)
    share = np.where(sign > 0, 0.5 / len(good), 0.5 / len(ordinary))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        margins = sign * (x @ weights + bias)
        value = share @ np.logaddexp(0, -margins) + _PENALTY * (weights @ weights)
        slope = -sign * share * np.exp(-np.logaddexp(0, margins))  # of the sigmoid, without overflow
        return value, np.concatenate([xt @ slope + 2 * _PENALTY * weights, [slope.sum()]])

    found = minimize(loss, np.zeros(buckets + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return Classifier(found.x[:-1], found.x[-1])


def evaluate(classifier: Classifier, good: Iterable[str], ordinary: Iterable[str]) -> dict[str, Any]:
    """Return how well a classifier tells documents apart that it was not trained on.

    Returns:
      `auc`, the probability that a good document scores above an ordinary one, ties counting half; `auc_error`, its
      standard error (Hanley and McNeil 1982); `documents`, how many of each; `thresholds`, per threshold the shares
      of good (`recall`) and ordinary documents that are kept, and `precision` if both were as common.
    """
    scores = [np.array([classifier.score(text) for text in texts]) for texts in (good, ordinary)]
    area = auc(*scores)
    table = []
    for threshold in _THRESHOLDS:
        recall, kept = (float((s >= threshold).mean()) for s in scores)
        precision = recall / (recall + kept) if recall + kept else None
        table.append({"threshold": threshold, "recall": recall, "ordinary_kept": kept, "precision": precision})
    return {
        "auc": area,
        "auc_error": _auc_error(area, len(scores[0]), len(scores[1])),
        "documents": {"good": len(scores[0]), "ordinary": len(scores[1])},
        "thresholds": table,
    }


def auc(good: np.ndarray, ordinary: np.ndarray) -> float:
    """Return the area under the ROC curve of two samples of scores: the Mann-Whitney statistic as a share."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([good, ordinary]))
    n = len(good)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(ordinary)))


def _auc_error(area: float, good: int, ordinary: int) -> float:
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (good - 1) * (q1 - area**2) + (ordinary - 1) * (q2 - area**2)
    return math.sqrt(max(0.0, variance) / (good * ordinary))


def top_ngrams(
    classifier: Classifier, good: Sequence[Sequence[str]], ordinary: Sequence[Sequence[str]], count: int = 30
) -> dict[str, list[tuple[str, float]]]:
    """Return the n-grams that speak most for `good` and for `ordinary`, with their weights.

    A bucket has the name of the n-gram that is in the most passages. Its weight is counted times the square root of
    how many passages have it, or rare words would fill the list.

    Args:
      good, ordinary: passages that it was trained on.
    """
    buckets = len(classifier.weights)
    rows = [_buckets(passage, buckets) for passage in (*good, *ordinary)]
    frequency = np.bincount(np.concatenate(rows), minlength=buckets)
    influence = classifier.weights * np.sqrt(frequency)
    order = np.argsort(influence, kind="stable")
    wanted = {"good": order[::-1][:count], "ordinary": order[:count]}
    looked_for = np.concatenate(list(wanted.values()))
    names: dict[int, collections.Counter] = {int(bucket): collections.Counter() for bucket in looked_for}
    for passage, row in zip((*good, *ordinary), rows, strict=True):
        if np.isin(looked_for, row).any():
            for ngram, bucket in _named(passage, buckets):
                if bucket in names:
                    names[bucket][ngram] += 1

    def name(bucket: int) -> str:
        return min(names[bucket].items(), key=lambda item: (-item[1], item[0]))[0]

    return {
        side: [(name(int(b)), round(float(classifier.weights[b]), 3)) for b in own if influence[b] * sign > 0]
        for (side, own), sign in zip(wanted.items(), (1, -1), strict=True)
    }


def _named(passage: Sequence[str], buckets: int) -> Iterator[tuple[str, int]]:
    """Yield a passage's words and pairs with their buckets."""
    ngrams = [*passage, *map(" ".join, zip(passage, passage[1:], strict=False))]
    hashes = np.concatenate(hash_ngrams(hash_words(passage), (1, 2)))
    return zip(ngrams, (hashes % np.uint64(buckets)).tolist(), strict=True)


class Quality:
    """The document step that scores documents, sets `quality` and keeps by threshold or by chance.

    Rejections (value: the quality): `quality/low`, below `min_quality`; `quality/sampled`, not drawn.

    Args:
      classifier: trained (`Classifier.load`).
      min_quality: least score; None: any.
      sample_by_quality: keep a document with its score as probability instead; which ones depends on the seed and the
        document's source and id only.
      seed: of that draw.
    """

    name = "quality"

    def __init__(
        self,
        classifier: Classifier,
        *,
        min_quality: float | None = None,
        sample_by_quality: bool = False,
        seed: int = 0,
    ):
        self._classifier, self._min_quality = classifier, min_quality
        self._sample, self._seed = sample_by_quality, seed
        self.counts: collections.Counter = collections.Counter()

    def __call__(self, record: Record) -> Rejection | None:
        quality = self._classifier.score(record.text)
        record.metadata["quality"] = round(quality, 4)
        if self._sample:
            drawn = point("quality", str(self._seed), record.source, record.id) < quality
            return None if drawn else Rejection("quality/sampled", round(quality, 4))
        if self._min_quality is not None and quality < self._min_quality:
            return Rejection("quality/low", round(quality, 4))
        return None
