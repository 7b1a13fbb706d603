import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from atoll.model.tokenizer import ByteTokenizer

OURS = ByteTokenizer()
THEIRS = Tokenizer.from_str(OURS.to_json())  # the library other tools use, as an oracle

texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts)
def test_any_text_comes_back(text):
    assert OURS.decode(OURS.encode(text)) == text


@given(texts)
def test_the_tokenizers_library_agrees_on_ids_and_text(text):
    ids = THEIRS.encode(text).ids
    assert ids == OURS.encode(text).tolist()
    assert THEIRS.decode(ids) == text


@given(st.binary())
def test_bytes_that_are_no_text_decode_as_in_the_tokenizers_library(data):
    assert OURS.decode(list(data)) == THEIRS.decode(list(data))


def test_every_byte_is_its_own_token():
    assert sorted(json.loads(OURS.to_json())["model"]["vocab"].values()) == list(range(256))
    assert OURS.encode("é").tolist() == [0xC3, 0xA9]
    assert OURS.encode("é").dtype == np.uint8


def test_a_token_that_is_no_byte_is_refused():
    with pytest.raises(ValueError, match="256"):
        OURS.decode([256])
