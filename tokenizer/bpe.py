"""`Tokenizer`: what one does with a vocabulary.

Special tokens are read as a whole or not at all: in training the text is cut at them, in encoding they
count only where the caller allows them (tiktoken's rule: special text that is neither allowed nor waved
through is an error, since it may come from someone who should not be able to end your document).

    <|pad|>          fills rows of a batch up to equal length; the loss leaves it out
    <|endoftext|>    stands between documents; generation stops at it
    <|unk|>          reserved. Every byte has a token, so encoding never meets an unknown and never makes this id;
                     it is there for data sets that mark removed text, and decodes to its own name

Left out here: what a vocabulary is (vocabulary.py), how merges are learned (train.py), how files look (formats.py).
"""

from __future__ import annotations

import builtins
import codecs
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from . import formats, prepare, pretokenize
from .pretokenize import special_expression, to_bytes
from .vocabulary import AddedToken, Vocabulary

if TYPE_CHECKING:
    from .merge import Scratch, Tables

DEFAULT_SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>", "<|unk|>")

Text = str | bytes
Ids = int | Sequence[int] | np.ndarray


# Of short texts that are encoded in one go: less is not worth a thread, more is memory.
LEAST_GROUP, MOST_GROUP = 1 << 14, 1 << 20  # bytes


class Policy(NamedTuple):
    """What special tokens mean to a call of `encode`: what may not be in a text, and the added tokens to be read."""

    refused: re.Pattern[bytes] | None
    taken: dict[str, AddedToken]


class Tokenizer:
    """Byte-level BPE. Made by `train`, `bytes`, `load`, one of the `from_…` readers, or from a `Vocabulary`; never
    changed afterwards."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._special_tokens = vocabulary.special_tokens()
        self._missing = re.compile(b"[%b]" % re.escape(missing)) if (missing := vocabulary.missing_bytes()) else None
        self.vocab_size = max([*vocabulary.tokens, *(token.id for token in vocabulary.added.values())]) + 1
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._threads = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.vocabulary,)

    # ---- makers ----

    @classmethod
    def train(
        cls,
        texts: pretokenize.Texts,
        vocab_size: int,
        pattern: str | Sequence[str] | None = "gpt4",
        special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
        min_count: int = 1,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Tokenizer:
        """Learn a vocabulary of at most `vocab_size` tokens: 256 bytes, merges, and last the special tokens.

        `texts` is a text, or an iterable of texts; each may be a str, bytes, a path (`pathlib.Path`) or an open file
        (`gzip.open(…)`, `sys.stdin.buffer`). Files are read in blocks and need not fit into memory. `pattern` is a
        name from `PATTERNS`, a regular expression, several that cut one after another, or None for no cutting. With an
        expression of your own each text is read whole, as nobody knows where it could be cut. The vocabulary is smaller
        than asked when no pair occurs `min_count` times any more.
        `progress(what, done, total)` is called now and then; total is 0 where it is not known.

        The same texts give the same merges on every machine that knows the same Unicode (pretokenize.py). Ties go as
        `naive.py` states.

        Raises ValueError for a `vocab_size` below 256 + special tokens.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}")
        special_tokens = _checked_special(special_tokens)
        n_merges = vocab_size - 256 - len(special_tokens)
        if n_merges < 0:
            raise ValueError(
                f"vocab_size {vocab_size} is too small: 256 bytes and {len(special_tokens)} special tokens "
                f"need at least {256 + len(special_tokens)}"
            )
        from . import train

        resolved = pretokenize.resolve(pattern)
        merges = train.learn(texts, n_merges, resolved, special_tokens, min_count, progress)
        tokens = {byte: bytes([byte]) for byte in range(256)}
        for left, right, new in merges.tolist():
            tokens[new] = tokens[left] + tokens[right]
        return cls(Vocabulary(tokens, merges, _numbered(special_tokens, len(tokens)), resolved))

    @classmethod
    def bytes(cls, special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS) -> Tokenizer:
        """The plain byte tokenizer: a byte's id is its value, special tokens follow from 256 on."""
        special_tokens = _checked_special(special_tokens)
        tokens = {byte: bytes([byte]) for byte in range(256)}
        return cls(Vocabulary(tokens, np.empty((0, 3)), _numbered(special_tokens, 256)))

    # ---- what it is ----

    @property
    def kind(self) -> Literal["bpe", "bytes"]:
        """"bytes" for a tokenizer without merges, else "bpe"."""
        return "bpe" if len(self.merges) else "bytes"

    @property
    def tokens(self) -> dict[int, builtins.bytes]:
        """Ordinary tokens, id to bytes (a copy)."""
        return dict(self.vocabulary.tokens)

    @property
    def merges(self) -> np.ndarray:
        """(M, 3) int64, read-only: left id, right id, new id, in order of priority."""
        return self.vocabulary.merges

    @property
    def pattern(self) -> pretokenize.Pattern:
        """The regular expression that text is split by, several of them, or None."""
        return self.vocabulary.pattern

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens, text to id, in order of their ids (a copy)."""
        return dict(self._special_tokens)

    @property
    def eot_id(self) -> int | None:
        """Id of `<|endoftext|>`, None where the vocabulary has none."""
        return self._special_tokens.get("<|endoftext|>")

    @property
    def pad_id(self) -> int | None:
        """Id of `<|pad|>`, None where the vocabulary has none."""
        return self._special_tokens.get("<|pad|>")

    @property
    def unk_id(self) -> int | None:
        """Id of `<|unk|>`, None where the vocabulary has none. Encoding never makes it of itself."""
        return self._special_tokens.get("<|unk|>")

    def token_bytes(self, token: int) -> builtins.bytes:
        """The bytes a token stands for; a special token stands for its own text."""
        return self.decode_bytes(token)

    def hash(self) -> str:
        """64 hex digits of everything that ids depend on: tokens, merges, special tokens, pattern.

        Stable across save and load, versions and machines, so a manifest can hold it.
        """
        return self._hash

    @cached_property
    def _hash(self) -> str:
        return self.vocabulary.hash()

    def __len__(self) -> int:
        return self.vocab_size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.hash() == other.hash()

    def __hash__(self) -> int:
        return int(self.hash()[:15], 16)

    def __repr__(self) -> str:
        names: dict[Any, str] = {value: name for name, value in pretokenize.PATTERNS.items()}
        pattern = names.get(self.pattern, self.pattern)
        return (f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size}, pattern={pattern!r}, "
                f"special_tokens={self._special_tokens})")

    # ---- encoding ----

    def encode(
        self,
        text: Text,
        *,
        allowed_special: Literal["all"] | Collection[str] = (),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> np.ndarray:
        """Ids of a text, (T,) uint16, or uint32 for vocabularies beyond 65536.

        `allowed_special` are the special tokens to read as such ("all" for every one). Of the others, those in
        `disallowed_special` raise ValueError when the text holds them; pass `disallowed_special=()` to have
        them encoded as ordinary text.

        >>> tokenizer.encode("one<|endoftext|>two", allowed_special={"<|endoftext|>"})

        bytes that are not UTF-8 encode and decode without loss (ValueError where the vocabulary lacks the byte). In a
        str, lone surrogates become U+FFFD. A vocabulary with a normalizer gives back the normalized text.

        `allowed_special="all"` is what tokenizers' `encode(text, add_special_tokens=False)` does.
        """
        usual = allowed_special == () and disallowed_special == "all"
        return self._encode(to_bytes(text), self._usual if usual else self._policy(allowed_special, disallowed_special))

    def encode_batch(
        self,
        texts: Iterable[Text],
        *,
        threads: int | None = None,
        allowed_special: Literal["all"] | Collection[str] = (),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[np.ndarray]:
        """`encode` of each text, in order, on `threads` threads (None: one for each processor).

        The way to encode many short texts: a call of `encode` takes some microseconds, however short the text.
        """
        if isinstance(texts, (str, builtins.bytes)):
            raise TypeError(f"expected several texts, got one {type(texts).__name__}: pass [text], or use encode")
        texts = list(texts)
        threads = max(threads or os.cpu_count() or 1, 1)
        policy = self._policy(allowed_special, disallowed_special)
        groups = list(_grouped(texts, threads))
        if min(threads, len(groups)) <= 1:
            done = [self._encode_group(group, policy) for group in groups]
        else:
            with ThreadPoolExecutor(min(threads, len(groups))) as pool:
                done = list(pool.map(lambda group: self._encode_group(group, policy), groups))
        return list(chain.from_iterable(done))

    @cached_property
    def _usual(self) -> Policy:
        return self._policy((), "all")

    def _policy(
        self, allowed: Literal["all"] | Collection[str], disallowed: Literal["all"] | Collection[str]
    ) -> Policy:
        for argument in (allowed, disallowed):
            if isinstance(argument, str) and argument != "all":
                raise ValueError(f'expected "all" or a set of special tokens, got {argument!r}: pass {{{argument!r}}}')
        names = frozenset(self._special_tokens)
        allowed = names if allowed == "all" else names & frozenset(allowed)
        refused = names - allowed if disallowed == "all" else frozenset(disallowed)
        taken = {name: token for name, token in self.vocabulary.added.items() if name in allowed or not token.special}
        return Policy(special_expression(refused) if refused else None, taken)

    def _encode(self, data: builtins.bytes, policy: Policy) -> np.ndarray:
        forms = self.vocabulary.normalizer
        if policy.refused:
            for form in (data, prepare.normalize(data, forms)) if forms else (data,):
                if found := policy.refused.search(form):
                    raise ValueError(_special_message(found.group().decode(), found.start()))
        if not policy.taken and not forms:
            return self._encode_ordinary(data)
        out = [
            np.array([part], dtype=self.dtype) if isinstance(part, int) else self._encode_ordinary(part)
            for part in prepare.stretches(data, policy.taken, forms)
        ]
        return np.concatenate([np.empty(0, dtype=self.dtype), *out])

    def _encode_group(self, texts: Sequence[Text], policy: Policy) -> list[np.ndarray]:
        """Ids of each text. Texts that need no preparation are joined and encoded in one go, each cut by itself.

        Joined they may hold special text that none of them holds; then, too, each is encoded alone.
        """
        parts = [to_bytes(text) for text in texts]
        data = b"".join(parts)
        alone = self.vocabulary.normalizer or self.vocabulary.prefix_space or self.pattern not in pretokenize.SCANNERS
        names = special_expression(frozenset(policy.taken)) if policy.taken else None
        if alone or any(sought and sought.search(data) for sought in (policy.refused, names, self._missing)):
            return [self._encode(part, policy) for part in parts]
        stops = np.cumsum([len(part) for part in parts], dtype=np.int64)
        ids = self._encode_pieces(data, pretokenize.piece_ends(data, self.pattern, stops))
        # tokens spell the texts out, so a text's ids end where the bytes of tokens add up to its end
        ends = np.searchsorted(np.cumsum(self._lengths[ids]), stops, side="right").tolist()
        return [ids[begin:end].copy() for begin, end in zip([0, *ends], ends, strict=False)]

    def _encode_ordinary(self, data: builtins.bytes) -> np.ndarray:
        if self._missing and (missing := self._missing.search(data)):
            raise ValueError(f"byte {data[missing.start()]:#04x} has no token in this vocabulary; UTF-8 never holds it")
        if self.vocabulary.prefix_space and data and not data.startswith(b" "):
            data = b" " + data
        if not len(self.merges) and not self.vocabulary.whole_pieces:
            return self._tables.byte_ids.astype(self.dtype)[np.frombuffer(data, dtype=np.uint8)]
        return self._encode_pieces(data, pretokenize.piece_ends(data, self.pattern))

    def _encode_pieces(self, data: builtins.bytes, cuts: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
        """Ids of `data`, cut as `pretokenize.piece_ends` describes."""
        merge, tables = self._compiled, self._tables
        scratch: Scratch = getattr(self._threads, "scratch", None) or merge.Scratch.make()
        view = np.frombuffer(data, dtype=np.uint8)
        out = np.empty(len(data) + 1, dtype=self.dtype)
        n_out = 0
        for start, ends in cuts:
            done, room = 0, 1
            while room:
                begin = int(ends[done - 1]) if done else start
                done, n_out, room = merge.encode_pieces(view, begin, ends, done, tables, scratch, out, n_out)
                if room:
                    scratch = merge.Scratch.make(2 * room, scratch.cache)
        self._threads.scratch = scratch
        return out[:n_out].copy()

    @cached_property
    def _compiled(self) -> ModuleType:
        """merge.py, which brings Numba along, so it is imported at first use."""
        from . import merge

        return merge

    @cached_property
    def _tables(self) -> Tables:
        names = {token.id: name.encode() for name, token in self.vocabulary.added.items()}
        return self._compiled.make_tables(self.vocabulary.tokens, self.merges, names, self.vocabulary.whole_pieces)

    @cached_property
    def _lengths(self) -> np.ndarray:
        """Of each token, in bytes; (vocab_size,) int64."""
        return np.diff(self._tables.offsets)

    # ---- decoding ----

    def decode_bytes(self, ids: Ids) -> builtins.bytes:
        """The bytes that `ids` stand for: the exact inverse of `encode` on any bytes.

        Raises ValueError for an id that names no token, with the id and its position.
        """
        merge = self._compiled
        given = array = np.atleast_1d(np.asarray(ids))
        if array.size == 0:
            return b""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"expected ids as one row of integers, got shape {array.shape} of {array.dtype}")
        array = array.astype(np.int64)
        size, wrong = merge.measure(array, self._tables)
        if wrong >= 0:
            gaps = self.vocab_size > len(self.vocabulary.tokens) + len(self.vocabulary.added)
            raise ValueError(f"id {given[wrong]} at position {wrong} names no token: ids go from 0 to "
                             f"{self.vocab_size - 1}" + (", with gaps" if gaps else ""))
        out = np.empty(size + merge.PADDING, dtype=np.uint8)
        merge.copy_tokens(array, self._tables, out)
        return out[:size].tobytes()

    def decode(self, ids: Ids, errors: str = "replace") -> str:
        """The text that `ids` stand for. `errors` is what `bytes.decode` takes: what to do with bytes that are
        no UTF-8, such as a character cut in half ("replace", "strict", "ignore", "surrogateescape", …)."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decoder(self, errors: str = "replace") -> StreamDecoder:
        """A decoder for ids that arrive bit by bit; it holds back a character until it is whole."""
        return StreamDecoder(self, errors)

    # ---- files ----

    def save(self, path: str | os.PathLike) -> None:
        """Write tokenizer.json in Hugging Face's format; `Tokenizer.load` and `tokenizers` read it alike."""
        self.to_huggingface(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tokenizer:
        """Read a tokenizer.json, or the one in the folder `path`. Raises `FormatError`, naming the place."""
        path = Path(path)
        return cls.from_huggingface(path / "tokenizer.json" if path.is_dir() else path)

    @classmethod
    def from_huggingface(cls, source: str | os.PathLike | Mapping[str, Any]) -> Tokenizer:
        """From a tokenizer.json (a path, or its parsed content)."""
        return cls(formats.read_huggingface(source))

    def to_huggingface(self, path: str | os.PathLike | None = None) -> dict[str, Any]:
        """The content of tokenizer.json, written to `path` where one is given."""
        return formats.write_huggingface(self.vocabulary, path)

    @classmethod
    def from_gpt2(cls, vocab_bpe: str | os.PathLike, encoder_json: str | os.PathLike) -> Tokenizer:
        """From GPT-2's vocab.bpe and encoder.json, which are also known as merges.txt and vocab.json."""
        return cls(formats.read_gpt2(vocab_bpe, encoder_json))

    def to_gpt2(self, vocab_bpe: str | os.PathLike, encoder_json: str | os.PathLike) -> None:
        """Write vocab.bpe and encoder.json (or merges.txt and vocab.json). The pattern must be GPT-2's."""
        formats.write_gpt2(self.vocabulary, vocab_bpe, encoder_json)

    @classmethod
    def from_tiktoken(
        cls, source: Any, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
    ) -> Tokenizer:
        """From a tiktoken rank file with its `pattern` and `special_tokens` (text to id), or a `tiktoken.Encoding`."""
        return cls(formats.read_tiktoken(source, pattern, special_tokens))

    def to_tiktoken(self, path: str | os.PathLike | None = None) -> dict[str, Any]:
        """The arguments of `tiktoken.Encoding(**…)`; the ranks are written to `path` where one is given."""
        return formats.write_tiktoken(self.vocabulary, path)


class StreamDecoder:
    """Decodes ids as they arrive. What `feed` and `finish` return adds up to `decode` of all ids.

    >>> decoder = tokenizer.decoder()
    >>> for token in stream:
    ...     print(decoder.feed(token), end="")
    >>> print(decoder.finish())
    """

    def __init__(self, tokenizer: Tokenizer, errors: str = "replace") -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def feed(self, ids: Ids) -> str:
        """The characters that `ids` (one or several) complete; the rest waits."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """What is left of an unfinished character, by the `errors` policy; the decoder starts afresh."""
        try:
            return self._decoder.decode(b"", final=True)
        finally:
            self._decoder.reset()


def _grouped(texts: Sequence[Text], threads: int) -> Iterator[Sequence[Text]]:
    """Neighbouring texts in groups of even size, eight for each thread unless that makes them too small or large."""
    sizes = [len(text) if isinstance(text, (str, bytes)) else 0 for text in texts]
    enough = min(max(sum(sizes) // (8 * threads), LEAST_GROUP), MOST_GROUP)
    first = size = 0
    for i in range(len(texts)):
        size += sizes[i]
        if size >= enough:
            yield texts[first:i + 1]
            first, size = i + 1, 0
    if first < len(texts):
        yield texts[first:]


def _checked_special(special_tokens: Sequence[str]) -> tuple[str, ...]:
    names = tuple(special_tokens)
    if isinstance(special_tokens, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"special_tokens must be a sequence of non-empty strings, got {special_tokens!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"special_tokens holds a token twice: {special_tokens!r}")
    return names


def _numbered(special_tokens: Sequence[str], first: int) -> dict[str, AddedToken]:
    return {name: AddedToken(first + i) for i, name in enumerate(special_tokens)}


def _special_message(name: str, position: int) -> str:
    return (
        f"the text holds the special token {name!r} at byte {position}: pass allowed_special={{{name!r}}} to encode "
        f"it as that token, or disallowed_special=() to encode it as ordinary text"
    )
