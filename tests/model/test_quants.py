"""Oracle: the `gguf` package of llama.cpp's authors, bit for bit."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from atoll.model.quants import PACKINGS, unpacked

KINDS = pytest.mark.parametrize("kind", PACKINGS, ids=[packing.name for packing in PACKINGS.values()])


@KINDS
def test_a_packing_is_named_and_sized_as_in_ggml(kind):
    packing = PACKINGS[kind]
    theirs = GGMLQuantizationType(kind)
    assert (packing.name, (packing.numbers, packing.nbytes)) == (theirs.name, GGML_QUANT_SIZES[theirs])


@KINDS
def test_any_bytes_unpack_to_the_same_bits_as_ggmls(kind):
    packing = PACKINGS[kind]
    rows = np.random.default_rng(kind).integers(0, 256, (37, 3 * packing.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = dequantize(rows, GGMLQuantizationType(kind))
    np.testing.assert_array_equal(unpacked(packing, rows).view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 6, 7, 8, 30])
def test_what_ggml_has_packed_comes_back_about_as_it_was(kind):
    packing = PACKINGS[kind]
    x = np.random.default_rng(1).normal(size=(5, 128)).astype(np.float32)
    rows = quantize(x, GGMLQuantizationType(kind)).view(np.uint8)
    assert rows.shape == (5, packing.row_bytes(128))
    tolerance = {0: 0, 1: 1e-3, 30: 1e-2, 8: 0.02}.get(kind, 0.5)
    np.testing.assert_allclose(unpacked(packing, rows), x, atol=tolerance)


def test_many_rows_are_unpacked_in_parts_and_are_the_same():
    packing = PACKINGS[8]
    rows = np.random.default_rng(2).integers(0, 127, (3000, 34 * 16), dtype=np.uint8)
    whole = unpacked(packing, rows)
    np.testing.assert_array_equal(whole[2900:], unpacked(packing, rows[2900:]))
    assert unpacked(packing, rows[:0]).shape == (0, 512)
