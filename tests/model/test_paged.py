"""Paged models give what the whole model gives, however the text is cut and whoever else is there."""

import numpy as np
import pytest
import torch

from atoll.errors import InvalidTensor
from atoll.model import torch_int4
from atoll.model.kernel import KernelModel
from atoll.model.packed import EMBEDDING, Matrix, Packed
from atoll.model.paged import PAGE_TOKENS, PagedModel, Slice
from atoll.model.quants import PACKINGS
from atoll.model.torch_pages import TorchModel
from tests.serve.bytes_model import model

PAGES = 40


def kernel(transformer, **options) -> PagedModel:
    return KernelModel(Packed.of(transformer), PAGES, threads=2, **options)


MODELS = {
    "kernel": kernel,
    "torch": lambda transformer: TorchModel(transformer, PAGES),
    "torch, one by one": lambda transformer: TorchModel(transformer, PAGES, batch_invariant=True),
}


@pytest.fixture(params=MODELS)
def paged(request) -> PagedModel:
    return MODELS[request.param](model())


def text(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, 256, n).tolist()


def whole(transformer, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return transformer(torch.tensor([tokens]))[0].numpy()


def cut(paged, tokens: list[int], sizes: list[int], pages: list[int]) -> np.ndarray:
    """All logits of a text that passes in slices of these sizes."""
    found, at = [], 0
    for size in sizes:
        found.append(paged.forward([Slice(tokens[at : at + size], at, pages, size)]))
        at += size
    assert at == len(tokens)
    return np.concatenate(found)


def test_logits_are_the_whole_models(paged):
    tokens = text(0, 100)
    found = cut(paged, tokens, [100], list(range(7)))
    np.testing.assert_allclose(found, whole(model(), tokens), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [[1] * 60, [60], [7, 20, 1, 1, 31], [16, 16, 28], [33, 3, 5, 9, 10]])
def test_however_it_is_cut_and_wherever_it_lies(paged, sizes):
    tokens = text(1, 60)
    wanted = cut(paged, tokens, [60], [0, 1, 2, 3])
    found = cut(paged, tokens, sizes, [30, 5, 17, 8])
    if paged.batch_invariant:
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=1e-4)


def test_whoever_else_is_in_the_batch(paged):
    rng = np.random.default_rng(2)
    texts = [text(10 + i, int(n)) for i, n in enumerate(rng.integers(2, 60, 9))]
    pages = [list(range(4 * i, 4 * i + 4)) for i in range(9)]
    alone = [cut(paged, tokens, [len(tokens)], held) for tokens, held in zip(texts, pages, strict=True)]
    at = [0] * 9
    found = [[] for _ in texts]
    while slices := [(i, min(int(rng.integers(1, 20)), len(t) - at[i])) for i, t in enumerate(texts) if at[i] < len(t)]:
        logits = paged.forward([Slice(texts[i][at[i] : at[i] + n], at[i], pages[i], n) for i, n in slices])
        for (i, n), rows in zip(slices, np.split(logits, np.cumsum([n for _, n in slices])[:-1]), strict=True):
            found[i].append(rows)
            at[i] += n
    for rows, wanted in zip(found, alone, strict=True):
        if paged.batch_invariant:
            np.testing.assert_array_equal(np.concatenate(rows), wanted)
        else:
            np.testing.assert_allclose(np.concatenate(rows), wanted, atol=2e-4, rtol=1e-4)


def test_pages_can_be_put_aside_and_come_back_elsewhere(paged):
    tokens = text(3, 50)
    wanted = cut(paged, tokens, [50], [0, 1, 2, 3])
    cut(paged, tokens[:40], [40], [4, 5, 6])
    saved = paged.save([4, 5, 6])
    cut(paged, text(4, 48), [48], [4, 5, 6])
    paged.restore([9, 8, 7], saved)
    found = paged.forward([Slice(tokens[40:], 40, [9, 8, 7, 10], 10)])
    np.testing.assert_allclose(found, wanted[40:], atol=2e-4, rtol=1e-4)


def test_a_shared_beginning_is_read_from_the_same_pages(paged):
    common, first, second = text(5, 32), text(6, 10), text(7, 12)
    wanted = [whole(model(), common + rest)[32:] for rest in (first, second)]
    cut(paged, common, [32], [0, 1])
    both = paged.forward([Slice(first, 32, [0, 1, 2], 10), Slice(second, 32, [0, 1, 3], 12)])
    np.testing.assert_allclose(both, np.concatenate(wanted), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        Slice([], 0, [0]), Slice([1], -1, [0]), Slice([1], 256, list(range(17))), Slice([1, 2], 15, [0]),
        Slice([256], 0, [0]), Slice([-1], 0, [0]), Slice([1], 0, [PAGES]), Slice([1], 0, [-1]),
        Slice([1], 0, [0], 2), Slice([1], 0, [0], -1),
    ],
)  # fmt: skip
def test_what_would_read_or_write_elsewhere_is_refused(paged, wrong):
    with pytest.raises(InvalidTensor):
        paged.forward([Slice([1], 0, [0]), wrong])


def packed_as(name: str, weights: Packed) -> Packed:
    """The weights rounded to a packing, by the library the format comes from."""
    from gguf import GGMLQuantizationType, quantize

    packing = next(packing for packing in PACKINGS.values() if packing.name == name)
    matrices = {
        key: Matrix(quantize(matrix.rows.view(np.float32), GGMLQuantizationType[name]).view(np.uint8), packing)
        for key, matrix in weights.matrices.items()
    }
    return Packed(weights.config, matrices, weights.vectors)


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 50])
def test_packed_rows_compute_what_their_numbers_do(name, n):
    weights = packed_as(name, Packed.of(model()))
    tokens = text(8, n)
    found = cut(KernelModel(weights, PAGES, threads=2), tokens, [n], [0, 1, 2, 3])
    np.testing.assert_allclose(found, whole(weights.transformer(), tokens), atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1"])
def test_rounded_activations_come_close_and_are_as_invariant(name):
    weights = packed_as(name, Packed.of(model()))
    fast = KernelModel(weights, PAGES, integers=True, threads=2)
    tokens = text(9, 60)
    found = cut(fast, tokens, [60], [0, 1, 2, 3])
    np.testing.assert_array_equal(cut(fast, tokens, [1, 9, 2, 30, 18], [4, 5, 6, 7]), found)
    wanted = whole(weights.transformer(), tokens)
    apart = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert apart.max() < 0.1, apart


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("n", [1, 5, 50])
def test_four_bits_in_pytorch_come_close(name, n):
    weights = packed_as(name, Packed.of(model()))
    if not torch_int4.can(weights):
        pytest.skip("this PyTorch has no product of four-bit rows for this processor")
    four = TorchModel(torch_int4.in_four_bits(weights), PAGES)
    tokens = text(14, n)
    found, wanted = cut(four, tokens, [n], [0, 1, 2, 3]), whole(weights.transformer(), tokens)
    apart = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert 0 < apart.max() < 0.05, apart
    assert not torch_int4.can(packed_as("Q8_0", Packed.of(model())))


def test_an_untied_head_has_rows_of_its_own():
    transformer = model()
    weights = Packed.of(transformer)
    from dataclasses import replace

    from atoll.model.packed import HEAD
    from atoll.model.quants import FLOAT32

    rows = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)
    untied = Packed(
        replace(weights.config, tie_embeddings=False),
        {**weights.matrices, HEAD: Matrix(rows.view(np.uint8), FLOAT32)},
        weights.vectors,
    )
    tokens = text(11, 20)
    found = cut(KernelModel(untied, PAGES, threads=1), tokens, [20], [0, 1])
    np.testing.assert_allclose(found, whole(untied.transformer(), tokens), atol=2e-4, rtol=1e-4)
    assert untied.matrices[EMBEDDING] is weights.matrices[EMBEDDING]


@pytest.mark.slow
def test_the_plain_source_computes_the_same(monkeypatch, tmp_path):
    """Without what AVX2 has of its own: another order of rounding in the products only."""
    from atoll.model import kernel as driver

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(driver, "_FLAGS", tuple(flag for flag in driver._FLAGS if flag != "-march=native"))
    driver.library.cache_clear()
    try:
        weights = packed_as("Q4_1", Packed.of(model()))
        plain = KernelModel(weights, PAGES, threads=2)
        assert not plain._library.atoll_vectors()
        tokens = text(12, 40)
        found = cut(plain, tokens, [25, 1, 14], [0, 1, 2])
        np.testing.assert_allclose(found, whole(weights.transformer(), tokens), atol=5e-4, rtol=1e-3)
        np.testing.assert_array_equal(cut(plain, tokens, [40], [4, 5, 6]), found)
    finally:
        driver.library.cache_clear()


def test_page_size_is_whole():
    assert PAGE_TOKENS % 8 == 0


def test_states_are_what_the_logits_are_made_of(paged):
    tokens = text(13, 50)
    states = np.concatenate(
        [
            paged.states([Slice(tokens[:20], 0, [0, 1, 2, 3], 20)]),
            paged.states([Slice(tokens[20:], 20, [0, 1, 2, 3], 30)]),
        ]
    )
    assert states.shape == (50, 64)
    head = model().lm_head.weight.detach().numpy()
    np.testing.assert_allclose(states @ head.T, whole(model(), tokens), atol=5e-4, rtol=1e-3)
