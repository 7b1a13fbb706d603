"""What a run learns: windows of a text, or labels of texts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from atoll.errors import InvalidConfig, InvalidData
from atoll.model.tokenizer import ByteTokenizer
from atoll.model.transformer import Transformer, TransformerConfig
from atoll.train.settings import TrainSettings
from atoll.train.tasks import Labels, Text, docstrings, labelled, task_for
from tests.train.tiny import corpus, tiny

TEXTS = [(("good", "bad")[i % 2], f"{('fine', 'poor')[i % 2]} thing number {i}") for i in range(50)]
CONFIG = TransformerConfig(width=16, layers=1, heads=2, context=64)


def labels(texts: Any = TEXTS, context: int = 48) -> Labels:
    model = Transformer(CONFIG)
    return Labels(model, ByteTokenizer(), lambda: Transformer(CONFIG), texts, context)


def one_byte(**changes: Any) -> TrainSettings:
    return tiny(strategy="one-byte", **changes)


def test_a_row_is_the_text_the_question_and_the_first_token_that_tells_the_labels_apart() -> None:
    task = labels([*TEXTS, ("good", "x")])
    rows = task.batch(np.arange(task.examples))
    for row in rows:
        text = bytes(token for token in row.tolist() if token >= 0)
        assert text[:-1].endswith(b"\nTopic: ")
        assert text[-1:] in (b"g", b"b")
        assert (text[-1:] == b"g") == (text.startswith((b"fine", b"x")))
    assert (rows[:, 1:] == -1).any()


def test_the_loss_is_that_of_the_labels_among_themselves() -> None:
    task = labels()
    rows = task.batch(np.arange(3))
    expected = []
    task.model.requires_grad_(False)
    for row in rows:
        tokens = row[row >= 0]
        scores = task.model(tokens[None, :-1])[0, -1, [ord("b"), ord("g")]]
        expected.append(F.cross_entropy(scores, torch.tensor(int(tokens[-1] == ord("g")))))
    assert float(task.loss(rows)) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_a_fifth_is_held_out_and_says_how_many_are_right() -> None:
    task = labels()
    assert task.examples == 40
    found = task.evaluate()
    assert found["loss"] == pytest.approx(np.log(2), abs=0.1)
    assert 0 <= found["accuracy"] <= 1


def test_long_texts_are_cut_to_what_the_model_sees() -> None:
    task = labels([(("a", "b")[i % 2], "long " * 100 + str(i)) for i in range(10)], context=32)
    assert task.batch(np.arange(4)).shape == (4, 33)


def test_a_context_with_no_room_for_a_text_is_refused() -> None:
    assert labels(context=9).batch(np.arange(4)).shape == (4, 10)
    with pytest.raises(InvalidConfig, match=r"--model.context must be at least 9, .* not 8"):
        labels(context=8)


def test_restart_gives_the_weights_back() -> None:
    task = labels()
    before = task.model.lm_head.weight.clone()
    with torch.no_grad():
        task.model.lm_head.weight += 1
    task.restart()
    assert torch.equal(task.model.lm_head.weight, before)


def test_the_order_of_the_texts_does_not_matter() -> None:
    assert labels(TEXTS[::-1]).fingerprint == labels().fingerprint
    assert labels(TEXTS[:-1]).fingerprint != labels().fingerprint


@pytest.mark.parametrize(
    ("texts", "words"),
    [([("a", "x"), ("a", "y")], "1 labels"), ([], "0 labels"), ([("bad", "x"), ("badly", "y")], "rename them")],
)
def test_labels_that_can_not_be_told_apart_are_refused(texts: Any, words: str) -> None:
    with pytest.raises(InvalidData, match=words):
        labels(texts)


def test_a_file_has_a_label_and_a_text_per_line(tmp_path: Path) -> None:
    file = tmp_path / "texts.tsv"
    file.write_text("good\ta fine day\nbad\ta day of rain\n")
    assert labelled(str(file)) == [("good", "a fine day"), ("bad", "a day of rain")]
    file.write_bytes("good\ta fine\u2028\x0cday\r\nbad\ta day\n".encode())
    assert labelled(str(file)) == [("good", "a fine\u2028\x0cday"), ("bad", "a day")]
    file.write_text("good\ta fine day\nno tab\n")
    with pytest.raises(InvalidData, match=r"texts.tsv, line 2: is not LABEL, a tab and a text"):
        labelled(str(file))
    with pytest.raises(InvalidData, match="--task takes docstrings or a file"):
        labelled(str(tmp_path / "none"))


def test_python_s_own_library_has_many_labelled_texts() -> None:
    found = set(docstrings("number"))
    assert len(found) > 50
    assert {label for label, _ in found} == {"number"}


def test_a_task_is_made_from_the_settings(tmp_path: Path) -> None:
    assert isinstance(task_for(one_byte(), corpus()), Text)
    file = tmp_path / "texts.tsv"
    file.write_text("".join(f"{label}\t{text}\n" for label, text in TEXTS))
    settings = one_byte(task=str(file))
    found = task_for(replace(settings, model=replace(settings.model, context=64)), corpus())
    assert isinstance(found, Labels)
    assert found.fingerprint == labels().fingerprint
