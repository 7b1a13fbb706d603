import errno
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atoll.errors import InvalidData, SaveFailed
from atoll.model import saved
from atoll.model.saved import load_model, save_model
from atoll.model.tokenizer import ByteTokenizer
from atoll.model.transformer import Transformer, TransformerConfig

TOKENIZER = ByteTokenizer()
SHAPE = TransformerConfig(width=16, layers=1, heads=2, context=16)


def model(seed: int, config: TransformerConfig = SHAPE) -> Transformer:
    made = Transformer(config)
    made.initialise(seed)
    return made


def same(one: Transformer, two: Transformer) -> bool:
    ours, theirs = one.state_dict(), two.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


OLD, NEW = model(1), model(2)

configs = pytest.mark.parametrize(
    "config",
    [
        SHAPE,
        TransformerConfig(
            width=16, layers=2, heads=4, kv_heads=2, hidden=40, context=16, rope_theta=500.0, norm_eps=1e-3
        ),
        TransformerConfig(width=16, layers=1, heads=2, context=16, tie_embeddings=False),
    ],
    ids=["plain", "grouped queries", "untied"],
)


@configs
def test_comes_back_bit_for_bit(tmp_path, config):
    save_model(tmp_path / "model", model(3, config), TOKENIZER)
    loaded, tokenizer = load_model(tmp_path / "model")
    assert same(loaded, model(3, config))
    assert tokenizer.encode("é").tolist() == TOKENIZER.encode("é").tolist()
    tokens = torch.arange(16)[None]
    assert torch.equal(loaded(tokens), model(3, config)(tokens))


@configs
def test_hugging_face_loads_it(tmp_path, config):
    ours = model(3, config)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.mul_(10)  # so that the logits differ from each other by far more than the tolerance
    save_model(tmp_path / "model", ours, TOKENIZER)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())  # nothing missing, nothing left over
    tokens = torch.from_numpy(np.random.default_rng(0).integers(256, size=(2, 16)))
    assert ours(tokens).std() > 1
    # in float64, for such weights amplify the rounding of float32; what is left is that of the rotation's tables
    torch.testing.assert_close(theirs.double()(tokens).logits, ours.double()(tokens), atol=1e-4, rtol=1e-4)
    assert theirs.config.bos_token_id is theirs.config.eos_token_id is None  # no byte starts or ends a text


def test_hugging_face_loads_the_tokenizer(tmp_path):
    save_model(tmp_path / "model", NEW, TOKENIZER)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in ("def f(x):\n\treturn  x ", " naïve café ☃ 🏝\r\n", "<s> </s> [UNK] don 't , \0"):
        assert theirs(text)["input_ids"] == TOKENIZER.encode(text).tolist()
        assert theirs.decode(theirs(text)["input_ids"]) == text


def test_the_result_is_the_hash_of_the_weights(tmp_path):
    first = save_model(tmp_path / "a", NEW, TOKENIZER)
    assert first == save_model(tmp_path / "b", NEW, TOKENIZER) != save_model(tmp_path / "c", OLD, TOKENIZER)
    assert first == hashlib.sha256((tmp_path / "a" / "model.safetensors").read_bytes()).hexdigest()


def test_replaces_the_old_model_and_leaves_nothing_beside_it(tmp_path):
    save_model(tmp_path / "runs" / "model", OLD, TOKENIZER)
    save_model(tmp_path / "runs" / "model", NEW, TOKENIZER)
    assert same(load_model(tmp_path / "runs" / "model")[0], NEW)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["model"]


def test_a_link_to_the_folder_stays_one(tmp_path):
    save_model(tmp_path / "real", OLD, TOKENIZER)
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    save_model(tmp_path / "link", NEW, TOKENIZER)
    assert (tmp_path / "link").is_symlink()
    assert same(load_model(tmp_path / "real")[0], NEW)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damage_is_noticed_and_named(tmp_path, name):
    save_model(tmp_path, NEW, TOKENIZER)
    data = bytearray((tmp_path / name).read_bytes())
    data[-3] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidData, match=name):
        load_model(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InvalidData, match=name):
        load_model(tmp_path)


@pytest.mark.parametrize("text", [None, "", "what is this?\n", "\xff"])
def test_without_sound_hashes_nothing_is_loaded(tmp_path, text):
    save_model(tmp_path, NEW, TOKENIZER)
    (tmp_path / "SHA256SUMS").unlink()
    if text is not None:
        (tmp_path / "SHA256SUMS").write_text(text, encoding="latin-1")
    with pytest.raises(InvalidData):
        load_model(tmp_path)


def test_no_folder_is_named(tmp_path):
    with pytest.raises(InvalidData, match="nowhere"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("config.json", b'"hidden_size": 16', b'"hidden_size": 15'),
        ("config.json", b'"hidden_size": 16', b'"hidden_size": 32'),
        ("config.json", b'"hidden_size"', b'"width"'),
        ("tokenizer.json", b'"merges": []', b'"merges": [["a", "b"]]'),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path, name, old, new):
    """The hashes are right, the content is not."""
    save_model(tmp_path, NEW, TOKENIZER)
    before = (tmp_path / name).read_bytes()
    after = before.replace(old, new)
    assert after != before
    (tmp_path / name).write_bytes(after)
    sums = (tmp_path / "SHA256SUMS").read_text()
    (tmp_path / "SHA256SUMS").write_text(
        sums.replace(hashlib.sha256(before).hexdigest(), hashlib.sha256(after).hexdigest())
    )
    with pytest.raises(InvalidData, match=r"config|tokenizer"):
        load_model(tmp_path)


def test_never_replaces_what_is_no_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("five years of work")
    with pytest.raises(SaveFailed, match=r"thesis\.txt"):
        save_model(tmp_path / "model", NEW, TOKENIZER)
    assert (tmp_path / "model" / "thesis.txt").read_text() == "five years of work"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaveFailed, match="file"):
        save_model(tmp_path / "file", NEW, TOKENIZER)


class Crash(BaseException):
    """The process is gone: nothing after it happens."""


class Faults:
    """Counts what a process does to the world below `folder`, and lets it fail from a chosen step on."""

    def __init__(self) -> None:
        self.folder = self.error = None
        self.first = self.last = self.count = 0
        sys.addaudithook(self._audit)  # for good: there is no removing a hook

    @contextmanager
    def between(self, folder: Path, first: int, last: float, error: Callable[[], BaseException]):
        self.folder, self.first, self.last, self.error, self.count = str(folder), first, last, error, 0
        try:
            yield
        finally:
            self.folder = None

    def step(self, path: object) -> None:
        if self.folder is None or (os.path.isabs(str(path)) and not str(path).startswith(self.folder)):
            return  # relative paths are those of `rmtree`, which walks by descriptors
        self.count += 1
        if self.first <= self.count <= self.last:
            raise self.error()

    def _audit(self, event: str, arguments: tuple) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            self.step(arguments[0])


FAULTS = Faults()


@pytest.fixture
def every_step(monkeypatch, tmp_path):
    """What no audit event tells: the weights written by a foreign library, and flushes."""
    write, flush = saved.save_file, saved.os.fsync

    def save_file(weights, path, metadata):
        FAULTS.step(path)
        write(weights, path, metadata)
        FAULTS.step(path)

    def fsync(descriptor):
        FAULTS.step(tmp_path)
        flush(descriptor)

    monkeypatch.setattr(saved, "save_file", save_file)
    monkeypatch.setattr(saved.os, "fsync", fsync)


def fail_at_each_step(tmp_path: Path, error: Callable[[], BaseException], *, once: bool):
    """Saves NEW over OLD, with faults at step 1, 2, ... (`once`) or from there on, until a save meets none."""
    for first in range(1, 200):
        folder = tmp_path / str(first) / "model"
        save_model(folder, OLD, TOKENIZER)
        with FAULTS.between(tmp_path, first, first if once else math.inf, error):
            try:
                save_model(folder, NEW, TOKENIZER)
            except (Crash, SaveFailed) as raised:
                outcome = raised
            else:
                outcome = None
            met = FAULTS.count >= first
        if not met:
            assert first > 20
            return
        yield folder, outcome
    pytest.fail("a save has no end")


@pytest.mark.usefixtures("every_step")
def test_a_crash_at_any_step_leaves_the_old_or_the_new_whole(tmp_path):
    seen = set()
    for folder, _ in fail_at_each_step(tmp_path, Crash, once=False):
        loaded, _ = load_model(folder)
        seen.add("old" if same(loaded, OLD) else "new" if same(loaded, NEW) else "mixed")
        # And the next save cleans up.
        third = model(3)
        save_model(folder, third, TOKENIZER)
        assert same(load_model(folder)[0], third)
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert seen == {"old", "new"}


@pytest.mark.usefixtures("every_step")
def test_a_disk_that_refuses_once_leaves_the_old_model_in_place(tmp_path):
    failures = 0
    for folder, outcome in fail_at_each_step(
        tmp_path, lambda: OSError(errno.ENOSPC, "No space left on device"), once=True
    ):
        failures += outcome is not None
        # Removing the old model is the last thing: when only that fails, the new one is saved.
        assert folder.exists()
        assert outcome is None or "No space left" in str(outcome)
        loaded = load_model(folder)[0]
        assert same(loaded, OLD) if outcome is not None else same(loaded, NEW)
        shutil.rmtree(folder.parent)
    assert failures > 10


ODD = {
    "width beyond all memory": ("hidden_size", 1 << 40),
    "layers without end": ("num_hidden_layers", 1 << 40),
    "a vocabulary beyond all memory": ("vocab_size", 1 << 40),
    "a context beyond all memory": ("max_position_embeddings", 1 << 40),
    "a width that is no whole number": ("hidden_size", 16.5),
    "a width that is none": ("hidden_size", True),
    "tied, but how": ("tie_word_embeddings", "no"),
}


def with_new_hashes(folder: Path) -> None:
    """As whoever made the folder would write them."""
    names = sorted(path.name for path in folder.iterdir() if path.name != saved.HASHES)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / saved.HASHES).write_text("".join(lines))


@pytest.mark.parametrize("what", ODD)
def test_what_a_config_claims_takes_neither_memory_nor_time(tmp_path, what):
    save_model(tmp_path / "model", OLD, TOKENIZER)
    path = tmp_path / "model" / saved.CONFIG
    key, value = ODD[what]
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with_new_hashes(path.parent)
    with pytest.raises(InvalidData, match=r"config\.json"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (saved.CONFIG, b"[" * 100_000),
        (saved.CONFIG, b"\xff"),
        (saved.CONFIG, b"[]"),
        (saved.TOKENIZER, b"\xff"),
        (saved.WEIGHTS, b"no tensors"),
        (saved.WEIGHTS, b""),
    ],
)
def test_a_file_of_another_kind_is_named_though_its_hash_fits(tmp_path, name, content):
    save_model(tmp_path / "model", OLD, TOKENIZER)
    (tmp_path / "model" / name).write_bytes(content)
    with_new_hashes(tmp_path / "model")
    with pytest.raises(InvalidData, match=name):
        load_model(tmp_path / "model")


@configs
def test_the_number_of_parameters_follows_from_the_shape(config):
    assert config.parameters == sum(weight.numel() for weight in Transformer(config).parameters())
