"""Driver: which tokens an answer may have next, where it must match a grammar; by the llguidance library."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from atoll.errors import InvalidConfig, InvalidRequest
from atoll.model.api import Tokenizer
from atoll.serve.sampling import Row


class Grammars:
    """Grammars over a tokeniser's tokens. The library is loaded when the first is asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def open(self, grammar: str) -> "Grammar":
        """A new answer's. InvalidRequest for what is no grammar."""
        matcher = _library().LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise InvalidRequest("response_format", f"no answer can be held to it: {matcher.get_error()}")
        return Grammar(matcher)

    @cached_property
    def _tokens(self) -> Any:
        library = _library()
        return library.LLTokenizer(library.TokenizerWrapper(_Vocabulary(self._tokenizer)))


class Grammar:
    """One answer's way through it."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def over(self) -> bool:
        """Can nothing follow any more?"""
        return bool(self._matcher.is_stopped())

    def allowed(self, logits: Row) -> Row:
        """A copy in which what may not follow is impossible."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        may = np.unpackbits(packed, bitorder="little")[: len(logits)].astype(bool)
        found = np.full_like(logits, -np.inf)
        found[: len(may)][may] = logits[: len(may)][may]
        return found

    def take(self, token: int) -> None:
        """It does follow. RuntimeError where the library can't go on: an answer that seems over then is not whole."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar can't be followed: {str(self._matcher.get_error()).strip()[-300:]}")


class _Vocabulary:
    """What the library wants to know of a tokeniser."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [tokenizer.spelling(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(
            {token for token, spelling in enumerate(self.tokens) if not spelling} | tokenizer.ends
        )
        self.eos_token_id = min(tokenizer.ends, default=0)
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> Sequence[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode(errors="replace"))


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise InvalidConfig("answers held to a grammar need llguidance: pip install 'atoll[serve]'") from error
    return llguidance
