"""Fuzzers of all that reads what others wrote.

Each module named in `NAMES` is a target: `fuzz(data)` feeds any bytes to one reader and raises where that breaks its
word, `seeds()` are inputs to begin with, `mutate(data, rng)`, where there is one, makes others of them.

    python -m tests.fuzzers master --seconds 60
"""

from typing import Final

NAMES: Final = ("channel", "session", "master", "peer", "links", "election", "codecs", "saved", "models", "traces")
