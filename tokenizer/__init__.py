"""Byte-level BPE: text in, token ids out, and back without loss.

Read the files in this order; each opens with what it does and what it leaves out:

    naive.py        the definition: BPE in a page of plain Python, training and encoding
    pretokenize.py  the split patterns of GPT-2, GPT-4 and GPT-4o, and how text is cut into pieces
    bpe.py          `Tokenizer`, the public face: special tokens, decoding, streaming
    vocabulary.py   what a tokenizer is made of: one record
    prepare.py      added tokens and normal forms: what happens to a text before it is cut
    formats.py      tokenizer.json, vocab.bpe + encoder.json, tiktoken rank files: read, check, write
    scan.py         the split patterns once more, as compiled scanners over bytes
    merge.py        encoding once more, compiled: a cache, arrays, a heap, windows
    train.py        training once more, compiled: counts that are kept instead of taken anew
    jit.py          how loops are compiled and remembered
    __main__.py     `python -m tokenizer train | encode | decode | inspect`

The definition and `regex` are the oracles of the compiled half; the tests hold them equal.
"""

from .bpe import DEFAULT_SPECIAL_TOKENS, StreamDecoder, Tokenizer
from .pretokenize import PATTERNS
from .vocabulary import AddedToken, FormatError, Vocabulary

__all__ = [
    "DEFAULT_SPECIAL_TOKENS", "PATTERNS", "AddedToken", "FormatError", "StreamDecoder", "Tokenizer", "Vocabulary",
]  # fmt: skip
