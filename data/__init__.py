"""Text in, batches out: where a corpus comes from, its tokens on disk, how batches are drawn from them."""

from data.batches import random_words, split, training_batch, validation_batches
from data.corpus import Corpus, CorpusError, Tokens, tokenize

__all__ = [
    "Corpus", "CorpusError", "Tokens", "random_words", "split", "tokenize", "training_batch", "validation_batches",
]  # fmt: skip
