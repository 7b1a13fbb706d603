"""Driver: what a run learns: text to go on with, or texts to label; with a model of its own or a published one.

A file of labelled texts has a line `LABEL<tab>TEXT` for each; `docstrings` are those of Python's own library, to be
told by what their module is for: labelled English that lies on every machine.
"""

import ast
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from atoll.errors import InvalidConfig, InvalidData
from atoll.model import store
from atoll.model.loading import load
from atoll.model.tokenizer import ByteTokenizer
from atoll.model.transformer import Transformer, TransformerConfig
from atoll.train.api import SavedTokenizer, Task
from atoll.train.settings import TrainSettings
from atoll.train.shards import batch, count_windows
from atoll.train.text import Corpus

EVALUATED: Final = 256
"""Held-out texts, at most, that are labelled to see how good a model is."""
EVALUATED_WINDOWS: Final = 64
AT_A_TIME: Final = 16
PUBLISHED_TEXT_BYTES: Final = 1 << 20
"""So much of a text is cut in the tokens of a published model."""
ENDING: Final = "\nTopic:"
DOCSTRINGS: Final = "docstrings"
TOPICS: Final = {
    "network": "email http urllib xmlrpc ftplib imaplib smtplib poplib nntplib telnetlib socketserver ssl wsgiref",
    "parallel": "asyncio concurrent multiprocessing threading queue selectors sched subprocess contextvars",
    "text": "json csv html xml re string textwrap difflib configparser tokenize codecs argparse gettext pprint",
    "number": "decimal fractions statistics random numbers datetime calendar colorsys heapq bisect hashlib",
}
FEWEST_LETTERS: Final = 40
Labelled = tuple[str, str]
"""A label and a text."""


def task_for(settings: TrainSettings, corpus: Corpus) -> Task:
    """What the settings ask for."""
    m = settings.model
    if m.name:
        path = store.find(m.name)
        loaded = load(path)
        model, read = loaded.weights.transformer(), lambda: load(path).weights.transformer()
        tokenizer: SavedTokenizer = loaded.tokenizer
    else:
        config = TransformerConfig(width=m.width, layers=m.layers, heads=m.heads, context=m.context)
        model, tokenizer, read = _own(config, settings.seed), ByteTokenizer(), lambda: _own(config, settings.seed)
    if settings.task:
        return Labels(model, tokenizer, read, labelled(settings.task), m.context)
    if not m.name:
        return Text(model, tokenizer, read, corpus, m.context)
    text = _in_tokens(corpus, tokenizer)
    bytes_per_token = min(len(corpus.held_out), PUBLISHED_TEXT_BYTES) / len(text.held_out)
    return Text(model, tokenizer, read, text, m.context, bytes_per_token)


class _Base:
    """A model, its tokens, and how to get it as it was: read anew, for a copy would take as much memory as it does."""

    def __init__(self, model: Transformer, tokenizer: SavedTokenizer, read: Callable[[], Transformer]) -> None:
        self.model, self.tokenizer, self._read = model, tokenizer, read

    def restart(self) -> None:
        """Give the model the weights with which all begin."""
        weights = dict(self._read().named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])


class Text(_Base):
    """A `Task`: windows of a text, each token from those before it."""

    def __init__(
        self, model: Transformer, tokenizer: SavedTokenizer, read: Callable[[], Transformer], corpus: Corpus,
        context: int, bytes_per_token: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(model, tokenizer, read)
        self.corpus, self.context, self.fingerprint = corpus, context, corpus.fingerprint
        self._bytes_per_token = bytes_per_token
        self.examples = count_windows(corpus.train, context)
        windows = np.arange(min(EVALUATED_WINDOWS, count_windows(corpus.held_out, context)))
        self.evaluated = [part for part in np.array_split(windows, -(-EVALUATED_WINDOWS // AT_A_TIME)) if len(part)]
        """Windows of the held-out text that are looked at, in batches."""

    def batch(self, indices: NDArray[np.int64]) -> Tensor:
        """Windows [windows, context + 1]."""
        return batch(self.corpus.train, indices, self.context)

    def loss(self, batch: Tensor) -> Tensor:
        """Mean cross entropy per token."""
        return self.model.loss(batch)

    def evaluate(self) -> dict[str, float]:
        """Loss on the held-out text, nats per byte."""
        with torch.no_grad():
            losses = [
                float(self.model.loss(batch(self.corpus.held_out, part, self.context))) * len(part)
                for part in self.evaluated
            ]
        return {"loss": sum(losses) / sum(map(len, self.evaluated)) / self._bytes_per_token}


class Labels(_Base):
    """A `Task`: the right one of a few words after a text. A fifth of the texts is held out."""

    def __init__(
        self, model: Transformer, tokenizer: SavedTokenizer, read: Callable[[], Transformer],
        texts: Sequence[Labelled], context: int,
    ) -> None:  # fmt: skip
        super().__init__(model, tokenizer, read)
        self.context = context
        texts = sorted(set(texts), key=lambda each: (xxhash.xxh3_64_intdigest("\t".join(each).encode()), each))
        self.fingerprint = xxhash.xxh3_128_hexdigest("\n".join(map("\t".join, texts)).encode())
        self.labels = sorted({label for label, _ in texts})
        if len(self.labels) < 2 or len(texts) < 2:
            raise InvalidData(f"there are {len(self.labels)} labels on {len(texts)} texts; give two and more of each")
        words = [self._tokens(f" {label}") for label in self.labels]
        at_once = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*words, strict=False))
        shared = [tokens[0] for tokens in at_once]  # the space, where tokens are bytes
        if any(len(word) == len(shared) for word in words) or len({word[len(shared)] for word in words}) < len(words):
            raise InvalidData(f"the labels {', '.join(self.labels)} don't begin with different tokens: rename them")
        self._before = [*self._tokens(ENDING), *shared]
        if context <= len(self._before):
            raise InvalidConfig(
                f"--model.context must be at least {len(self._before) + 1}, to see some of a text before its label, "
                f"not {context}"
            )
        self._words = torch.tensor([word[len(shared)] for word in words])
        held_out = max(1, len(texts) // 5)
        self._held_out, self._train = texts[:held_out], texts[held_out:]
        self.examples = len(self._train)

    def batch(self, indices: NDArray[np.int64]) -> Tensor:
        """Texts with the label's first token last; -1 behind."""
        return self._rows([self._train[i] for i in indices])

    def loss(self, batch: Tensor) -> Tensor:
        """Mean cross entropy of the right label among all labels."""
        return F.cross_entropy(self._scores(batch), self._right(batch))

    def evaluate(self) -> dict[str, float]:
        """Loss, and the share of held-out texts that get their label."""
        losses = hits = 0.0
        texts = self._held_out[:EVALUATED]
        with torch.no_grad():
            for at in range(0, len(texts), AT_A_TIME):
                rows = self._rows(texts[at : at + AT_A_TIME])
                scores, right = self._scores(rows), self._right(rows)
                losses += float(F.cross_entropy(scores, right, reduction="sum"))
                hits += float((scores.argmax(-1) == right).sum())
        return {"loss": losses / len(texts), "accuracy": hits / len(texts)}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _scores(self, batch: Tensor) -> Tensor:
        """Logits of the labels' words [texts, labels]; of no other word, which would be most of the work."""
        hidden = self.model.model(batch[:, :-1].clamp(min=0))
        last = (batch >= 0).sum(1) - 2
        return F.linear(hidden[torch.arange(len(batch)), last], self.model.lm_head.weight[self._words])

    def _right(self, batch: Tensor) -> Tensor:
        tokens = batch[torch.arange(len(batch)), (batch >= 0).sum(1) - 1]
        return (tokens[:, None] == self._words).int().argmax(1)

    def _rows(self, texts: Sequence[Labelled]) -> Tensor:
        rows = [self._row(label, text) for label, text in texts]
        out = torch.full((len(rows), max(map(len, rows))), -1)
        for row, tokens in zip(out, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return out

    def _row(self, label: str, text: str) -> list[int]:
        room = self.context - len(self._before)
        return [*self._tokens(text[: 8 * room])[:room], *self._before, int(self._words[self.labels.index(label)])]

    def _tokens(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text)]


# -- texts ------------------------------------------------------------------------------------------------------------


def labelled(name: str) -> list[Labelled]:
    """The labelled texts of that name, or in that file. InvalidData: they can't be read."""
    if name == DOCSTRINGS:
        return [*docstrings(*TOPICS)]
    path = Path(name)
    try:
        lines = path.read_text("utf-8").removesuffix("\n").split("\n")  # a text may hold other ends of line
    except OSError as error:
        raise InvalidData(f"{path}: can't be read: {error.strerror}; --task takes {DOCSTRINGS} or a file") from error
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path}: is no UTF-8") from error
    texts = []
    for number, line in enumerate(lines, 1):
        label, tab, text = line.partition("\t")
        if not (label.strip() and tab and text.strip()):
            raise InvalidData(f"{path}, line {number}: is not LABEL, a tab and a text")
        texts.append((label.strip(), text.strip()))
    return texts


def docstrings(*topics: str) -> Iterator[Labelled]:
    """What Python's own library says of itself, labelled by what the module is for: some of `TOPICS`."""
    library = Path(sysconfig.get_path("stdlib"))
    for topic in topics:
        for name in TOPICS[topic].split():
            package = library / name
            for file in sorted(package.rglob("*.py")) if package.is_dir() else [library / f"{name}.py"]:
                if file.is_file() and "test" not in file.parts:
                    yield from ((topic, text) for text in _docstrings(file))


def _docstrings(file: Path) -> Iterator[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)) and len(text) >= FEWEST_LETTERS:
            yield " ".join(text.split())


def _own(config: TransformerConfig, seed: int) -> Transformer:
    model = Transformer(config)
    model.initialise(seed)
    return model


def _in_tokens(corpus: Corpus, tokenizer: SavedTokenizer) -> Corpus:
    """The text as a published model reads it."""

    def cut(part: NDArray[np.uint8]) -> Any:
        text = part[:PUBLISHED_TEXT_BYTES].tobytes().decode(errors="replace")
        return np.array(tokenizer.encode(text), np.int32)

    return Corpus(cut(corpus.train), cut(corpus.held_out), corpus.fingerprint)
