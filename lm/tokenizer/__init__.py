"""Byte-level BPE tokenizers: loading by name or file, training, encoding in parallel. No JAX here."""

from lm.tokenizer.files import OFFICIAL, load_tokenizer, save
from lm.tokenizer.parallel import encode_documents
from lm.tokenizer.tokenizer import END_OF_TEXT, PATTERNS, StreamDecoder, Tokenizer
from lm.tokenizer.train import train_bpe

__all__ = [
    "END_OF_TEXT",
    "OFFICIAL",
    "PATTERNS",
    "StreamDecoder",
    "Tokenizer",
    "encode_documents",
    "load_tokenizer",
    "save",
    "train_bpe",
]
