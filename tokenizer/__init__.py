"""Byte-level BPE: text in, token ids out, and back without loss.

Read the files in this order; each header says what the file leaves out:

    naive.py        the definition: BPE in a page of plain Python, training and encoding
    pretokenize.py  the split patterns of GPT-2, GPT-4 and GPT-4o, and how text is cut into pieces
    bpe.py          `Tokenizer`, the public face: special tokens, decoding, streaming
    formats.py      tokenizer.json, vocab.bpe + encoder.json, tiktoken rank files: read, check, write
"""

from .bpe import DEFAULT_SPECIAL_TOKENS, StreamDecoder, Tokenizer
from .formats import FormatError
from .pretokenize import PATTERNS

__all__ = ["DEFAULT_SPECIAL_TOKENS", "PATTERNS", "FormatError", "StreamDecoder", "Tokenizer"]
