import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import InvalidData
from atoll.model.gguf import GGUF
from tests.model.gguf_files import gguf, metadata, tensors, text, value

ROWS = np.arange(12, dtype="<f4").reshape(3, 4)


def read(data: bytes) -> GGUF:
    return GGUF(Path("a.gguf"), data)


def header(entries: bytes, n_tensors: int = 0, n_entries: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_entries) + entries


def test_reads_what_the_gguf_package_writes(tmp_path):
    path = tmp_path / "theirs.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(7)
    writer.add_bool("yes", True)
    writer.add_int64("far", -(1 << 40))
    writer.add_array("words", ["a", "é", ""])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_tensor("w", ROWS)
    packed = np.arange(2 * 34 * 2, dtype=np.uint8).reshape(2, 68)
    writer.add_tensor("q", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUF.open(path)
    assert file.required("general.architecture", str) == "llama"
    assert file.required("llama.block_count", int) == 7
    assert file.required("yes", bool) is True
    assert file.required("far", int) == -(1 << 40)
    assert file.required("words", list) == ["a", "é", ""]
    assert file.metadata["numbers"].tolist() == [1, -2, 3]
    np.testing.assert_array_equal(file.numbers("w"), ROWS)
    np.testing.assert_array_equal(file.rows("q"), packed)
    assert file.tensors["q"].shape == (2, 64)


def test_rows_are_a_view_that_nobody_can_write(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf({}, {"w": (0, (3, 4), ROWS.tobytes())}))
    rows = GGUF.open(path).rows("w")
    assert rows.base is not None
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
    assert rows.shape == (3, 16)
    assert rows.tobytes() == ROWS.tobytes()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_versions_and_alignments(version, alignment):
    held = {"v": (0, (5,), ROWS.tobytes()[:20]), "w": (0, (3, 4), ROWS.tobytes())}
    file = read(gguf({"general.alignment": alignment}, held, version=version, alignment=alignment))
    np.testing.assert_array_equal(file.numbers("w"), ROWS)
    assert file.numbers("v").shape == (5,)


def test_lists_of_lists_and_all_kinds_of_numbers():
    held = {
        form: np.array([1, 0, 1], form) for form in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?")
    }
    file = read(gguf({**held, "nested": [["a"], ["b", "c"]]}, {}))
    for form, numbers in held.items():
        np.testing.assert_array_equal(file.metadata[form], numbers)
    assert file.metadata["nested"] == [["a"], ["b", "c"]]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "GGUF"),
        (b"PK\3\4 something else", "is no GGUF file"),
        (header(b"", version=1), "is GGUF version 1"),
        (header(b"", version=3 << 24), "big-endian"),
        (header(b"", n_entries=1 << 60), "the header claims"),
        (header(b"", n_tensors=1 << 40), "the header claims"),
        (header(text("key" * 3) + struct.pack("<IQ", 8, 1 << 50) + bytes(20)), "keykeykey claims"),
        (header(text("key") + struct.pack("<IIQ", 9, 6, 1 << 61) + bytes(20)), "key claims"),
        (header(text("key") + struct.pack("<IIQ", 9, 99, 1) + bytes(20)), "key claims a list of values of kind 99"),
        (header(text("key") + struct.pack("<I", 13) + bytes(20)), "key claims a value of kind 13"),
        (header(text("key") + struct.pack("<IIQ", 9, 9, 1) * 9 + bytes(40)), "key claims"),
        (header(text(b"\xff" * 9) + bytes(20)), "metadata entry 1 claims a text that is no UTF-8"),
        (header((text("k") + value(1)) * 2, n_entries=2), "'k' for the second time"),
        (gguf({"general.alignment": 7}, {}), "general.alignment is 7"),
        (gguf({"general.alignment": "x"}, {}), "general.alignment is no whole number"),
        (gguf({}, {"w": (0, (3, 4), b"")}), "w ends at byte"),
        (gguf({}, {"w": (8, (3, 4), bytes(99))}), "w has rows of 4"),
        (gguf({}, {"w": (0, (0, 4), b"")}), r"w claims the shape \[0, 4\]"),
        (gguf({}, {"w": (0, (1 << 40, 1 << 40), b"")}), "w claims the shape"),
        (gguf({}, {"w": (0, (1,) * 5, bytes(4))}), "w claims 5 dimensions"),
    ],
)
def test_what_is_not_sound_is_named_in_one_line(data, named):
    with pytest.raises(InvalidData, match=named) as caught:
        read(data)
    assert str(caught.value).startswith("a.gguf: ")
    assert "\n" not in str(caught.value)


def test_a_packing_not_known_is_named_when_it_is_asked_for():
    file = read(gguf({}, {"w": (16, (1, 256), bytes(66))}))
    with pytest.raises(InvalidData, match=r"a\.gguf: w is packed in way 16.*known: F32.*Q4_K"):
        file.numbers("w")
    with pytest.raises(InvalidData, match="has no tensor v"):
        file.rows("v")


def test_missing_and_mistyped_metadata_are_named():
    file = read(gguf({"a": 1, "b": True}, {}))
    assert file.optional("c", 5) == 5
    assert file.required("a", float) == 1.0
    for key, kind, named in (("c", int, "has no c"), ("a", str, "a is no text"), ("b", int, "b is no whole number")):
        with pytest.raises(InvalidData, match=named):
            file.required(key, kind)


def test_files_that_can_not_be_read_are_named(tmp_path):
    with pytest.raises(InvalidData, match="absent"):
        GGUF.open(tmp_path / "absent.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(InvalidData, match=r"empty\.gguf: is empty"):
        GGUF.open(tmp_path / "empty.gguf")


WHOLE = gguf(metadata(), tensors())


@settings(deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_off_anywhere_is_refused(length):
    with pytest.raises(InvalidData, match=r"^a\.gguf: "):
        read(WHOLE[:length])
