"""Policy: guesses at what comes next, for decoders that can try several tokens in one pass.

Prompt lookup (Saxena, 2023): what followed the same few tokens before will follow them again. A draft that is drawn
with the answer's own random numbers and kept while it agrees changes no token, only their pace (cf. Leviathan et al.,
2023, arXiv 2211.17192).
"""

from collections.abc import Sequence


def lookup(tokens: Sequence[int], most: int, longest: int = 3, back: int = 1024) -> list[int]:
    """At most `most` tokens that followed the last time the text's last tokens occurred, `longest` of them or fewer, at
    least two. It looks `back` at so many tokens."""
    tokens = list(tokens[-back:])
    for n in range(min(longest, len(tokens) - 1), 1, -1):
        ending = tokens[-n:]
        for at in range(len(tokens) - n - 1, -1, -1):
            if tokens[at : at + n] == ending:
                return tokens[at + n : at + n + most]
    return []
