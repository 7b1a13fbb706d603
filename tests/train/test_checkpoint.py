import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from atoll.errors import InvalidData, SaveFailed
from atoll.train.checkpoint import FORMAT, _digest, load_newest, save_checkpoint

ABOUT = {"seed": 3, "model": {"width": 16}}


def state(step: int) -> dict[str, torch.Tensor]:
    return {
        "parameters": torch.arange(100.0) + step,
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(float(step)),
        "steps": torch.tensor([step]),
    }


def save(folder: Path, *steps: int) -> list[Path]:
    return [save_checkpoint(folder, step, state(step), ABOUT) for step in steps]


def same(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return loaded.keys() == expected.keys() and all(torch.equal(loaded[n], t) for n, t in expected.items())


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_what_was_saved_is_loaded(tmp_path):
    save(tmp_path / "new" / "folder", 7)
    tensors, about = load_newest(tmp_path / "new" / "folder")
    assert same(tensors, state(7))
    assert about == ABOUT


def test_the_two_newest_are_kept_and_nothing_else(tmp_path):
    save(tmp_path, 5, 90, 100, 1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000100.safetensors", "step-000001000.safetensors"]
    assert same(load_newest(tmp_path)[0], state(1000))


def test_instead_of_a_damaged_one_the_one_before_is_taken(tmp_path):
    save(tmp_path, 10, 20)
    damage(tmp_path / "step-000000020.safetensors")
    assert same(load_newest(tmp_path)[0], state(10))


def test_after_a_step_back_the_new_ones_outlive_the_damaged(tmp_path):
    """Two are damaged, the run goes on from an older one: what it saves must not be swept away as old."""
    later = save(tmp_path, 30, 40)
    for path in later:
        damage(path)
    save(tmp_path, 15, 25)
    assert same(load_newest(tmp_path)[0], state(25))


def test_where_all_are_damaged_each_is_named(tmp_path):
    paths = save(tmp_path, 10, 20)
    damage(paths[0])
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    with pytest.raises(InvalidData) as error:
        load_newest(tmp_path)
    assert all(str(path) in str(error.value) for path in paths)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InvalidData, match="holds no checkpoint") as error:
        load_newest(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_no_flipped_bit_goes_unnoticed_wherever_it_is(tmp_path):
    [path] = save(tmp_path, 10)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            tensors, about = load_newest(tmp_path)
        except InvalidData:
            continue
        assert same(tensors, state(10)), at
        assert about == ABOUT, at


def test_another_format_is_refused(tmp_path):
    [path] = save(tmp_path, 10)
    path.write_bytes(path.read_bytes().replace(b'"format":"1"', b'"format":"9"'))
    with pytest.raises(InvalidData, match="format 9"):
        load_newest(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, call):
    save(tmp_path, 10, 20)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    with pytest.raises(SaveFailed, match="No space left"):
        save(tmp_path, 30)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveFailed, match="file"):
        save(tmp_path / "file" / "checkpoint", 1)


@pytest.mark.parametrize("about", ["", "no JSON", "[1]", "[" * 100_000])
def test_one_whose_digest_fits_but_which_says_nothing_of_its_run_is_refused(tmp_path, about):
    metadata = {"format": FORMAT, "about": about, "digest": _digest(state(1), about)}
    tensors = {name: tensor.contiguous() for name, tensor in state(1).items()}
    save_file(tensors, tmp_path / "step-000000001.safetensors", metadata=metadata)
    with pytest.raises(InvalidData, match="step-000000001"):
        load_newest(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64], ids=str)
def test_types_that_numpy_lacks_are_saved_and_checked_too(tmp_path, dtype):
    tensors = {"w": torch.ones(3).to(dtype), "scalar": torch.ones(()).to(dtype)}
    path = save_checkpoint(tmp_path, 1, tensors, ABOUT)
    assert load_newest(tmp_path)[0]["w"].dtype == dtype
    damage(path)
    with pytest.raises(InvalidData, match="damaged"):
        load_newest(tmp_path)
