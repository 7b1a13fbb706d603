"""Policy: tokens of published models, for whoever runs one: from the lists in a GGUF file, or from a `tokenizer.json`.

The `tokenizers` library finds the tokens of a text. The way back is done here, from the bytes each token stands for, so
that a stream never waits longer than for the next whole character.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from encodings.utf_8 import IncrementalDecoder
from typing import TYPE_CHECKING, Any, Final

from atoll.errors import InvalidConfig, InvalidData
from atoll.model.tokenizer import byte_symbols

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

_DIGIT: Final = r"\p{N}"
_GPT2: Final = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace("{1,3}", "")
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORD: Final = "▁"
_BYTE: Final = re.compile("<0x[0-9A-Fa-f]{2}>")
_MOST_UNUSED: Final = 1 << 16
"""Numbers of tokens that a vocabulary may leave out, beyond as many as it has."""
_BYTES: Final = {symbol: byte for byte, symbol in enumerate(byte_symbols())}


@dataclass(frozen=True)
class _Cut:
    """How a text is cut before tokens are looked for: by these patterns, one after the other.

    `whole`: a piece that is a token is taken as it is, whatever the merges make of it. `prefixed`: such models put a
    token before a text unless their file says otherwise.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    prefixed: bool = False


CUTS: Final = (
    dict.fromkeys(("gpt-2", "phi-2", "jais", "mpt", "olmo", "exaone4"), _Cut((_GPT2,)))
    | dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r", "minerva-7b"), _Cut((_DIGIT, _GPT2)))
    | dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _Cut((_LLAMA3,), whole=True, prefixed=True))
    | dict.fromkeys(("smaug-bpe", "dbrx"), _Cut((_LLAMA3,)))
    | dict.fromkeys(("qwen2", "stablelm2", "megrez"), _Cut((_QWEN2,)))
    | {"tekken": _Cut((_TEKKEN,), whole=True, prefixed=True)}
)
"""By the word of GGUF files, `tokenizer.ggml.pre`; the patterns are those of the models' own tokenisers."""


@dataclass(frozen=True)
class TextPieces:
    """A stream of `TextTokenizer`."""

    _stands_for: Sequence[bytes]
    _decoder: IncrementalDecoder

    def push(self, token: int) -> str:
        """See `api.Pieces`."""
        return self._decoder.decode(_bytes_of(token, self._stands_for))

    def end(self) -> str:
        """See `api.Pieces`."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True)
class TextTokenizer:
    """The tokens of a published model: `api.Tokenizer`."""

    _library: "Tokenizer"
    _stands_for: Sequence[bytes]
    prefix: tuple[int, ...]
    ends: frozenset[int]
    _trim: bool = False
    """Whether the first space of a text is not part of it."""

    @property
    def vocab_size(self) -> int:
        """See `api.Tokenizer`."""
        return len(self._stands_for)

    def encode(self, text: str) -> list[int]:
        """See `api.Tokenizer`. UnicodeEncodeError for a lone surrogate."""
        text.encode()
        (found,) = self._library.encode_batch_fast([text], add_special_tokens=False)  # `encode` lets no thread run
        return list(found.ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """See `api.Tokenizer`."""
        stream = self.pieces()
        text = "".join([*map(stream.push, tokens), stream.end()])
        return text.removeprefix(" ") if self._trim else text

    def spelling(self, token: int) -> bytes:
        """See `api.Tokenizer`."""
        return _bytes_of(token, self._stands_for)

    def pieces(self) -> TextPieces:
        """See `api.Tokenizer`."""
        return TextPieces(self._stands_for, IncrementalDecoder("replace"))

    def to_json(self) -> str:
        """The same tokeniser as a `tokenizer.json`, for a model that is saved."""
        if self._library.decoder is None:  # the way back is done here, so it may have none
            self._library.decoder = _tokenizers().decoders.ByteLevel()
        return self._library.to_str(pretty=True) + "\n"

    def token(self, text: str) -> int | None:
        """The token of this name, if there is one."""
        return self._library.token_to_id(text)

    def name(self, token: int) -> str:
        """As the vocabulary spells it. ValueError for no token."""
        found = self._library.id_to_token(token) if token >= 0 else None
        if found is None:
            raise ValueError(f"{token} is no token")
        return found


def byte_pairs(
    tokens: Sequence[str],
    merges: Iterable[str],
    *,
    cut: str,
    special: Sequence[int],
    added: Sequence[int] = (),
    starts_with: int | None,
    ends: Iterable[int],
    prefixed: bool | None = None,
) -> TextTokenizer:
    """Byte-level BPE (Radford et al., 2019) from its lists. A merge is two tokens with a space between.

    `cut`: a key of `CUTS`. `special`: tokens that stand for no text; `added`: tokens that are found before the text is
    cut. `prefixed`: whether texts begin with `starts_with`; None: as is the custom with this cut. InvalidData for lists
    that make no vocabulary.
    """
    if cut not in CUTS:
        raise InvalidData(f"texts are cut in the way {cut!r}, which isn't known here; known: {', '.join(sorted(CUTS))}")
    ends = frozenset(ends)
    for token in (*special, *added, *ends, *(() if starts_with is None else (starts_with,))):
        if not 0 <= token < len(tokens):
            raise InvalidData(f"the special token {token} isn't one of the {len(tokens)} there are")
    vocabulary = {text: token for token, text in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or "" in vocabulary:
        raise InvalidData("a token is empty, or there twice")
    library = _tokenizers()
    pairs = _pairs(merges)
    with _refusing("the merges don't fit the vocabulary"):
        model = library.models.BPE(vocabulary, pairs, ignore_merges=CUTS[cut].whole)
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = _cutter(CUTS[cut].patterns)
    tokenizer.add_special_tokens([library.AddedToken(tokens[i], normalized=False, special=True) for i in special])
    tokenizer.add_tokens([library.AddedToken(tokens[i], normalized=False) for i in added])
    hidden = set(special)
    stands_for = [b"" if i in hidden else _byte_level(text) for i, text in enumerate(tokens)]
    wanted = CUTS[cut].prefixed if prefixed is None else prefixed
    prefix = (starts_with,) if wanted and starts_with is not None else ()
    return TextTokenizer(tokenizer, stands_for, prefix, ends)


def from_json(text: str, ends: Iterable[str | int]) -> TextTokenizer:
    """What the `tokenizers` library has saved: byte-level BPE, or SentencePiece's with bytes for what it lacks.

    `ends`: tokens, or their names. InvalidData for any other, and for what the library doesn't read.
    """
    library = _tokenizers()
    with _refusing("holds no tokeniser that is known here"):
        description = json.loads(text)
        tokenizer = library.Tokenizer.from_str(text)
        decoders = _parts(description["decoder"], "decoders")
        added = {token["id"]: token["content"] for token in description["added_tokens"]}
        special = {token["id"] for token in description["added_tokens"] if token["special"]}
        prefix = _prefix(tokenizer)
    kinds = {part.get("type") for part in decoders}
    if not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
        raise InvalidData(f"decoder is of the type {', '.join(sorted(map(str, kinds)))}, which isn't known here")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    spelled: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    if spelled and max(spelled.values()) > 2 * len(spelled) + _MOST_UNUSED:
        raise InvalidData(f"the vocabulary of {len(spelled)} tokens has one numbered {max(spelled.values())}")
    stands_for = [b""] * (max(spelled.values(), default=-1) + 1)
    to_bytes = _byte_level if "ByteLevel" in kinds else _sentence_piece
    for spelling, token in spelled.items():
        if token not in special:
            stands_for[token] = added[token].encode() if token in added else to_bytes(spelling)
    named = {spelled.get(end) if isinstance(end, str) else end for end in ends}
    found = frozenset(end for end in named if end is not None and 0 <= end < len(stands_for))
    trim = any(part.get("type") == "Strip" and part.get("start") for part in decoders) or any(
        part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never" for part in decoders
    )
    return TextTokenizer(tokenizer, stands_for, prefix, found, trim)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """InvalidData for all that the library or another's file comes to; the library even panics over some files."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise InvalidData(f"{what}: {str(error)[:200]}") from error
        raise


def _prefix(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """What it puts before any text."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    before = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    return tuple(whole[:before])


def _parts(description: Any, inner: str) -> list[Mapping[str, Any]]:
    """A step, or the steps of a sequence."""
    return list(description[inner]) if description["type"] == "Sequence" else [description]


def _pairs(merges: Iterable[str]) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise InvalidData(f"the merge {merge[:100]!r} isn't two tokens with a space between")
        pairs.append((left, right))
    return pairs


def _cutter(patterns: Sequence[str]) -> "PreTokenizer":
    library = _tokenizers()
    cuts = [library.pre_tokenizers.Split(library.Regex(pattern), "isolated") for pattern in patterns]
    to_symbols = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cutter: PreTokenizer = library.pre_tokenizers.Sequence([*cuts, to_symbols])
    return cutter


def _byte_level(spelling: str) -> bytes:
    """What a token of symbols for bytes stands for; one that isn't made of those stands for itself."""
    try:
        return bytes([_BYTES[symbol] for symbol in spelling])
    except KeyError:
        return spelling.encode()


def _sentence_piece(spelling: str) -> bytes:
    if _BYTE.fullmatch(spelling):
        return bytes([int(spelling[3:5], 16)])
    return spelling.replace(_WORD, " ").encode()


def _bytes_of(token: int, stands_for: Sequence[bytes]) -> bytes:
    if not 0 <= token < len(stands_for):
        raise ValueError(f"{token} is no token")
    return stands_for[token]


def _tokenizers() -> Any:
    """The library."""
    try:
        import tokenizers
    except ImportError as error:
        raise InvalidConfig(
            "tokens of published models need the library `tokenizers`: pip install 'atoll[serve]'"
        ) from error
    return tokenizers
