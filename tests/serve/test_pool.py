"""The pool never gives a page to two who write, finds beginnings by their tokens, and forgets the oldest first."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atoll.serve.pool import Beginning, KvPool

PAGE = 2


def test_a_beginning_is_found_by_its_tokens():
    pool = KvPool(8, PAGE)
    pages = pool.take(3)
    pool.keep(pages, [1, 2, 3, 4, 5], Beginning())
    assert pool.match([1, 2, 3, 4, 9, 9])[0] == pages[:2]
    assert pool.match([1, 2, 9, 9])[0] == pages[:1]
    assert pool.match([3, 4])[0] == []
    assert pool.match([1])[0] == []


def test_what_nobody_uses_is_found_until_its_page_is_needed():
    pool = KvPool(3, PAGE)
    pages = pool.take(2)
    pool.keep(pages, [1, 2, 3, 4], Beginning())
    pool.release(pages)
    assert pool.free == 3
    found, _ = pool.match([1, 2, 3, 4])
    assert found == pages
    pool.release(found)
    assert pool.take(2) is not None
    assert pool.match([1, 2, 3, 4])[0] == pages[:1], "the end goes before the beginning"


def test_two_with_the_same_text_lead_to_one_beginning():
    pool = KvPool(8, PAGE)
    first, second = pool.take(2), pool.take(3)
    pool.keep(first, [1, 2, 3, 4], Beginning())
    pool.keep(second, [1, 2, 3, 4, 5, 6], Beginning())
    assert pool.match([1, 2, 3, 4, 5, 6])[0] == [*first, second[2]]


def test_more_than_there_are_is_none():
    pool = KvPool(2, PAGE)
    assert pool.take(3) is None
    assert pool.free == 2


class Pool(RuleBasedStateMachine):
    """Against a model that knows what is written in each page."""

    def __init__(self):
        super().__init__()
        self.pool = KvPool(6, PAGE)
        self.written = {}
        self.sequences = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def come(self, tokens):
        found, kept = self.pool.match(tokens)
        for i, page in enumerate(found):
            assert self.written[page] == tuple(tokens[: (i + 1) * PAGE]), "found what isn't there"
        more = self.pool.take(-(-len(tokens) // PAGE) - len(found))
        if more is None:
            self.pool.release(found)
            return
        shared = {page for _, pages, _ in self.sequences for page in pages}
        assert not shared & set(more), "a page in use was given away"
        pages = found + more
        for i in range(len(found), len(tokens) // PAGE):
            self.written[pages[i]] = tuple(tokens[: (i + 1) * PAGE])
        self.sequences.append((tokens, pages, self.pool.keep(pages, tokens, kept)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def go(self, data):
        _, pages, _ = self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1)))
        self.pool.release(pages)

    @invariant()
    def none_is_lost(self):
        used = {page for _, pages, _ in self.sequences for page in pages}
        assert self.pool.free == 6 - len(used)


TestPool = Pool.TestCase


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12))
def test_as_much_as_there_is_of_a_beginning_is_found(texts):
    pool = KvPool(100, PAGE)
    known = set()
    for tokens in texts:
        whole = next((n for n in range(len(tokens) // PAGE, 0, -1) if tuple(tokens[: n * PAGE]) in known), 0)
        found, kept = pool.match(tokens)
        assert len(found) == whole
        pages = found + pool.take(-(-len(tokens) // PAGE) - len(found))
        pool.keep(pages, tokens, kept)
        known |= {tuple(tokens[: n * PAGE]) for n in range(1, len(tokens) // PAGE + 1)}
