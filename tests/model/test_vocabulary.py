import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from atoll.errors import InvalidData
from atoll.model.tokenizer import ByteTokenizer, byte_symbols
from atoll.model.vocabulary import CUTS, TextTokenizer, byte_pairs, from_json
from tests.model.gguf_files import MERGES, TOKENS

END, START, THINK = len(TOKENS) - 3, len(TOKENS) - 2, len(TOKENS) - 1


def small(cut: str = "smollm", **changed) -> TextTokenizer:
    lists = {"special": [END, START], "added": [THINK], "starts_with": START, "ends": [END], **changed}
    return byte_pairs(TOKENS, MERGES, cut=cut, **lists)


def spelled(tokenizer: TextTokenizer, text: str) -> list[str]:
    return [tokenizer.name(token) for token in tokenizer.encode(text)]


def test_merges_apply_in_their_order_within_a_piece():
    assert spelled(small(), "hello world") == ["hello", "Ġwo", "r", "l", "d"]
    assert spelled(small(), "hell he") == ["hell", "Ġ", "he"]


def test_how_a_text_is_cut_decides():
    assert spelled(small("smollm"), "12") == ["1", "2"]
    assert spelled(small("gpt-2"), "12") == ["12"]
    assert spelled(small("llama-bpe"), "12") == ["12"]
    assert spelled(small("qwen2"), "12") == ["1", "2"]


@pytest.mark.parametrize("cut", CUTS)
@settings(deadline=None)
@given(text=st.text().filter(lambda text: "<|" not in text))  # of which special tokens are made, that stand for no text
def test_any_text_comes_back(cut, text):
    tokenizer = _kept.setdefault(cut, small(cut))
    assert tokenizer.decode(tokenizer.encode(text)) == text


_kept: dict[str, TextTokenizer] = {}


def test_special_tokens_are_found_and_stand_for_no_text():
    tokenizer = small()
    tokens = tokenizer.encode("<|start|>hello<think>he<|end|>")
    assert tokens == [START, *tokenizer.encode("hello"), THINK, *tokenizer.encode("he"), END]
    assert tokenizer.decode(tokens) == "hello<think>he"
    assert tokenizer.token("<|end|>") == END
    assert tokenizer.ends == {END}


@pytest.mark.parametrize(
    ("cut", "prefixed", "prefix"),
    [("smollm", None, ()), ("smollm", True, (START,)), ("llama-bpe", None, (START,)), ("llama-bpe", False, ())],
)
def test_what_goes_before_a_text(cut, prefixed, prefix):
    assert small(cut, prefixed=prefixed).prefix == prefix


@settings(deadline=None)
@given(st.lists(st.integers(0, len(TOKENS) - 1)))
def test_pieces_together_are_the_text_and_each_is_whole(tokens):
    tokenizer = _kept.setdefault("smollm", small())
    stream = tokenizer.pieces()
    pieces = [*map(stream.push, tokens), stream.end()]
    assert "".join(pieces) == tokenizer.decode(tokens)


def test_a_character_comes_with_its_last_byte_and_no_later():
    tokenizer, stream = small(), small().pieces()
    assert [stream.push(token) for token in tokenizer.encode("a🏝é")] == ["a", "", "", "", "🏝", "", "é"]
    cut = tokenizer.encode("🏝")[:2]
    assert [*map(stream.push, cut), stream.end()] == ["", "", "\ufffd"]


@pytest.mark.parametrize("token", [-1, len(TOKENS), 1 << 40])
def test_no_token_is_refused(token):
    with pytest.raises(ValueError, match="no token"):
        small().decode([token])


def test_others_run_while_a_long_text_is_read():
    """As the streams of a server, whose prompts these are."""
    tokenizer, text, ended = small(), "many words " * (1 << 14), threading.Event()
    turns = [0]

    def run() -> None:
        while not ended.wait(0.0001):
            turns[0] += 1

    def meanwhile() -> int:
        before = turns[0]
        tokenizer.encode(text)
        return turns[0] - before

    other = threading.Thread(target=run)
    other.start()
    try:
        assert any(meanwhile() > 10 for _ in range(10))
    finally:
        ended.set()
        other.join()


def test_a_lone_surrogate_is_no_text():
    with pytest.raises(UnicodeEncodeError):
        small().encode("\ud800")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"cut": "qwen9"}, "'qwen9'.*known: .*smollm"),
        ({"special": [len(TOKENS)]}, f"special token {len(TOKENS)}"),
        ({"ends": [-1]}, "special token -1"),
        ({"tokens": ["a", "a"]}, "twice"),
        ({"tokens": ["", "a"]}, "empty"),
        ({"merges": ["he"]}, "merge 'he'"),
        ({"merges": ["h e l"]}, "merge 'h e l'"),
        ({"merges": ["h zz"]}, "merges don't fit"),
    ],
)
def test_lists_that_make_no_vocabulary_are_refused(changed, named):
    lists = {"tokens": TOKENS, "merges": MERGES, "cut": "smollm", "special": [], "starts_with": None, "ends": []}
    with pytest.raises(InvalidData, match=named):
        byte_pairs(**{**lists, **changed})


def test_a_saved_byte_tokeniser_is_read():
    tokenizer = from_json(ByteTokenizer().to_json(), [])
    assert tokenizer.encode("é\n") == list("é\n".encode())
    assert tokenizer.decode([0xF0, 0x9F, 0x8F, 0x9D, 0xFF]) == "🏝\ufffd"


@pytest.mark.parametrize("text", ["hello world, 12 he", "<|start|>hello<think>he<|end|>", "é ß 日本"])
def test_a_tokeniser_from_lists_is_saved_and_read(text):
    tokenizer = small()
    again = from_json(tokenizer.to_json(), ["<|end|>"])
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert again.ends == tokenizer.ends


def byte_level() -> Tokenizer:
    library = Tokenizer(models.BPE({t: i for i, t in enumerate(TOKENS)}, [tuple(m.split()) for m in MERGES]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|start|>", special=True)])
    library.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", START)])
    return library


def sentence_piece() -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "e", "▁h", "▁he"]
    merges = [("▁", "h"), ("▁h", "e")]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    library = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    return library


@pytest.mark.parametrize("library", [byte_level(), sentence_piece()], ids=["byte level", "SentencePiece"])
@pytest.mark.parametrize("text", ["hehe he", " he", "x🏝\n\n  y", "", "  ", "he</s>he"])
def test_a_tokenizer_json_gives_the_librarys_tokens_and_text(library, text):
    ours = from_json(library.to_str(), [])
    tokens = library.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == tokens
    assert [*ours.prefix, *tokens] == library.encode(text).ids
    assert ours.decode(tokens) == library.decode(tokens, skip_special_tokens=True)


def test_pieces_go_on_with_a_text():
    """So the first word of an answer keeps the space before it."""
    ours = from_json(sentence_piece().to_str(), [])
    assert "".join(map(ours.pieces().push, ours.encode("he he"))) == " he he"


def test_ends_are_found_by_number_and_name():
    assert from_json(byte_level().to_str(), ["<|end|>", START, "<nothing>", 1 << 40]).ends == {END, START}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no tokeniser"),
        ("{}", "no tokeniser"),
        ("[]", "no tokeniser"),
        (Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1})).to_str(), "no tokeniser|decoder"),
        (byte_level().to_str().replace('"model":{"type":"BPE"', '"model":{"type":"XYZ"'), "no tokeniser"),
    ],
)
def test_what_is_no_tokeniser_known_here_is_refused(text, named):
    with pytest.raises(InvalidData, match=named):
        from_json(text, [])


def test_numbers_far_beyond_the_vocabulary_cost_no_memory():
    description = json.loads(ByteTokenizer().to_json())
    description["model"]["vocab"][byte_symbols()[0]] = 4_000_000_000
    with pytest.raises(InvalidData, match="numbered 4000000000"):
        from_json(json.dumps(description), [])
