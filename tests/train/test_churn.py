import pytest

from atoll.errors import Unfit
from tests.train.churn import replay


@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", range(212))
def test_a_run_survives_what_its_seed_brings(seed):
    replay(seed)


def test_who_is_expelled_while_it_waits_for_a_mean_begins_anew_like_the_others():
    replay(1326)


def test_who_thaws_when_its_run_is_over_and_meets_another_is_told_that_it_is_ahead():
    run = replay(7004038)
    assert [type(peer.error) for peer in run.peers if peer.error] == [Unfit]
    assert sum(peer.done for peer in run.peers) == 4
