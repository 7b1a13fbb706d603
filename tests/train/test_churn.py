import pytest

from tests.train.churn import replay


@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", range(212))
def test_a_run_survives_what_its_seed_brings(seed):
    replay(seed)


def test_who_is_expelled_while_it_waits_for_a_mean_begins_anew_like_the_others():
    replay(1326)
