"""A monitor under DistributedDataParallel, on two processes."""

import pytest

from frechet.analyze import read_history
from ranks import on_ranks
from training_runs import same

pytestmark = pytest.mark.filterwarnings("ignore")


def test_training_on_two_ranks_is_bit_for_bit_the_same(tmp_path):
    found = on_ranks("monitor_worker", tmp_path)
    for rank, result in enumerate(found):
        assert same(result["plain"], result["watched"]), rank
        assert same(result["other"], result["shared"]), rank
    assert [step for step, _, _ in found[0]["alone"]] == [2, 4, 6, 8]
    assert found[1]["alone"] == []  # rank 0 measures its replica
    assert found[0]["together"] == found[1]["together"]
    assert [step for step, _, _ in found[0]["together"]] == [2, 4, 6, 8]
    for name in ("alone", "together"):
        assert [r.step for r in read_history(tmp_path / name).readings] == [2, 4, 6, 8]
