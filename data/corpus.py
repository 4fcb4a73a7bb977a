"""A corpus: documents of text from somewhere, read as a stream, and kept as a file of tokens.

    Corpus("builtin")            the English prose that ships with Python (see builtin.py)
    Corpus("story.txt")          one file, one document
    Corpus("books/")             every file under a folder, by name, hidden ones left out
    Corpus("books/**/*.md")      every file that a glob matches
    Corpus("pages.jsonl")        one JSON object a line, its text in the field "text"

Text is never held in memory whole: it passes through in pieces of about a megabyte, cut before a line break
that follows a letter or a digit, where no split pattern of the field joins characters, so that the
tokens do not depend on where the cuts fall. Tokens go to a flat file of uint16 (uint32 for a vocabulary over
65,536), `<|endoftext|>` between documents, which is then mapped into memory: the system pages in what batches
touch, so a corpus larger than memory trains. Beside it, manifest.json holds hashes of the corpus and of the
tokenizer, and of the file itself; where all match, the file is used again.

A document larger than memory is fine, a single line of .jsonl must fit. Left out: cleaning, filtering and
removing duplicates.
"""

import codecs
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data.builtin import builtin_documents
from data.files import held, read_json, remove_leftovers, write_whole, written_whole

BLOCK_BYTES = 1 << 20
LONGEST_PIECE = 1 << 23  # characters without a line break after a letter or digit: cut anywhere
_CUT = re.compile(r"(?s:.*)[^\W_](?=\n)")  # greedy: up to the last letter or digit before a line break

DecodingPolicy = Literal["strict", "replace", "ignore"]


class CorpusError(ValueError):
    """The corpus can't be used; the message says where and why, and what to do."""


class Piece(NamedTuple):
    """A stretch of text, and whether its document ends with it."""

    text: str
    ends_document: bool


@dataclass(frozen=True)
class Corpus:
    """Where text comes from and how it is read.

    source      "builtin", a file, a folder, a glob, or .jsonl among any of these
    errors      invalid UTF-8: "strict" refuses it with file and byte offset, "replace" puts U+FFFD in its
                place, "ignore" leaves the bytes out
    text_field  the field of a .jsonl object that holds the text
    """

    source: str = "builtin"
    errors: DecodingPolicy = "strict"
    text_field: str = "text"

    def paths(self) -> list[Path]:
        """The files of the corpus, in order; none for "builtin". Raises CorpusError if nothing is there."""
        if self.source == "builtin":
            return []
        path = Path(self.source).expanduser()
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
            if not files:
                raise CorpusError(f"the folder {path} holds no files; name another with --data")
            return files
        if path.exists():
            return [path]
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if not files:
            raise CorpusError(
                f"there is no file or folder {self.source}, nor does it match any as a glob; "
                f'give --data a path that exists, or "builtin"'
            )
        return files

    def pieces(self) -> Iterator[Piece]:
        """The text of the corpus, in order, in pieces of about a megabyte. Raises CorpusError and OSError."""
        for document in self._documents():
            held: str | None = None  # one piece back, to know the last of a document when it passes
            for text in filter(None, document):
                if held is not None:
                    yield Piece(held, False)
                held = text
            if held is not None:
                yield Piece(held, True)

    def _documents(self) -> Iterator[Iterator[str]]:
        if self.source == "builtin":
            yield from (iter([text]) for text in builtin_documents())
        for path in self.paths():
            if path.suffix == ".jsonl":
                yield from (iter([text]) for text in self._json_lines(path))
            else:
                yield self._text_file(path)

    def _text_file(self, path: Path) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(self.errors)
        rest, offset_bytes = "", 0
        with open(path, "rb") as file:
            while True:
                block = file.read(BLOCK_BYTES)
                try:
                    text = rest + decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    # The decoder puts the unfinished character of the last block in front of this one.
                    start_bytes = offset_bytes - (len(error.object) - len(block))
                    raise self._invalid_utf8(f"{path}", start_bytes, error) from error
                if not block:
                    yield text
                    return
                offset_bytes += len(block)
                cut = match.end() if (match := _CUT.match(text)) else 0
                if not cut and len(text) > LONGEST_PIECE:  # waited long enough for a good place
                    cut = len(text)
                yield text[:cut]
                rest = text[cut:]

    def _json_lines(self, path: Path) -> Iterator[str]:
        offset_bytes = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                if line.strip():
                    try:
                        entry = json.loads(line.decode("utf-8", self.errors))
                        text = entry[self.text_field]
                        # JSON can spell half a surrogate pair, which is no character and has no UTF-8.
                        yield text.encode("utf-8", "surrogatepass").decode("utf-8", self.errors)
                    except UnicodeDecodeError as error:
                        raise self._invalid_utf8(where, offset_bytes, error) from error
                    except json.JSONDecodeError as error:
                        raise CorpusError(f"{where} is not JSON ({error}); mend or remove it") from error
                    except (KeyError, TypeError, AttributeError) as error:
                        raise CorpusError(
                            f'{where} has no text in the field "{self.text_field}"; '
                            f"name the field that has with --data.text_field"
                        ) from error
                offset_bytes += len(line)

    def _invalid_utf8(self, where: str, start_bytes: int, error: UnicodeDecodeError) -> CorpusError:
        return CorpusError(
            f"{where} is not UTF-8: byte {start_bytes + error.start} is 0x{error.object[error.start]:02x}; "
            f"convert the file, or pass --data.errors replace (or ignore)"
        )

    def fingerprint(self) -> str:
        """SHA-256 of the text as it will be tokenised. Reads everything; raises CorpusError for bad text."""
        return self.measure()[0]

    def measure(self) -> tuple[str, int]:
        """(the fingerprint, bytes of UTF-8)."""
        digest, n_bytes = hashlib.sha256(), 0
        for text, ends_document in self.pieces():
            data = text.encode()
            digest.update(data)
            n_bytes += len(data)
            if ends_document:
                digest.update(b"\xff")  # never a byte of UTF-8: where documents end counts too
        return digest.hexdigest(), n_bytes


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


class Tokens(NamedTuple):
    """A tokenised corpus: `ids` (N,) uint16 or uint32, mapped from disk read-only, and its manifest.

    The manifest holds format, corpus and tokenizer (hashes), dtype, tokens, documents and bytes (of UTF-8).
    """

    ids: np.ndarray
    manifest: dict
    reused: bool


def tokenize(
    corpus: Corpus,
    encode: Callable[[str], np.ndarray],
    *,
    vocab_size: int,
    separator: int | None,
    tokenizer_hash: str,
    folder: Path,
    report: Callable[[int], None] = lambda bytes_done: None,
) -> Tokens:
    """The tokens of a corpus, from `folder` where they are up to date, else written there.

    encode      text → ids
    separator   the id between documents (None: nothing)
    report      called with the bytes of text done so far

    The file is written aside and renamed, the manifest with its checksum last; what does not match is made again.
    Raises CorpusError for text that can't be used and OSError where the folder can't be written.
    """
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    fingerprint, corpus_bytes = corpus.measure()
    wanted = {
        "format": 2, "corpus": fingerprint, "bytes": corpus_bytes, "tokenizer": tokenizer_hash, "dtype": dtype.name,
    }  # fmt: skip
    if tokens := _reuse(folder, wanted, dtype):
        return tokens
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, wait=True):  # another run may be filling the same cache
        if tokens := _reuse(folder, wanted, dtype):
            return tokens
        remove_leftovers(folder)
        (folder / "manifest.json").unlink(missing_ok=True)
        n_tokens = n_documents = n_bytes = 0
        digest = hashlib.sha256()
        with written_whole(folder / "tokens.bin") as out:
            between = False
            for text, ends_document in corpus.pieces():
                ids = np.asarray(encode(text))
                if between and separator is not None:
                    ids = np.concatenate([[separator], ids])
                data = ids.astype(dtype).tobytes()
                out.write(data)
                digest.update(data)
                between = ends_document
                n_tokens += len(ids)
                n_documents += ends_document
                n_bytes += len(text.encode())
                report(n_bytes)
            if not n_tokens:
                raise CorpusError(f"the corpus {corpus.source} is empty; give --data some text")
        manifest = {**wanted, "tokens": n_tokens, "documents": n_documents, "sha256": digest.hexdigest()}
        write_whole(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return Tokens(_mapped(folder / "tokens.bin", dtype), manifest, reused=False)


def _reuse(folder: Path, wanted: dict, dtype: np.dtype) -> Tokens | None:
    """The tokens in `folder`, if they are whole and what is wanted."""
    file = folder / "tokens.bin"
    try:
        manifest = read_json(folder / "manifest.json")
        counts = n_tokens, n_documents = manifest["tokens"], manifest["documents"]
        if not wanted.items() <= manifest.items() or not all(type(count) is int for count in counts):
            return None
        # A token stands for a byte at least, a separator for none; so a huge file that lies is not even read.
        if not 0 < n_tokens <= wanted["bytes"] + n_documents <= 2 * wanted["bytes"]:
            return None
        if file.stat().st_size != n_tokens * dtype.itemsize:
            return None
        with open(file, "rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != manifest["sha256"]:
                return None
    except (OSError, ValueError, KeyError):
        return None
    return Tokens(_mapped(file, dtype), manifest, reused=True)


def _mapped(file: Path, dtype: np.dtype) -> np.ndarray:
    return np.asarray(np.memmap(file, dtype, mode="r"))
