import pytest

from tests.train.churn import replay


@pytest.mark.parametrize("seed", range(12))
def test_a_run_survives_what_its_seed_brings(seed):
    replay(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_runs_survive_what_their_seeds_bring():
    for seed in range(12, 212):
        replay(seed)
