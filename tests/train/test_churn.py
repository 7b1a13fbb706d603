import pytest

from tests.train.churn import replay


@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", range(212))
def test_a_run_survives_what_its_seed_brings(seed):
    replay(seed)
