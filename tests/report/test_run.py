import time

import pytest
import torch

from frechet.linalg.density import spectral_density
from frechet.linalg.eigsh import eigsh
from frechet.operators.structured import from_diagonal
from frechet.report import run as module
from frechet.report.metered import metered
from frechet.report.run import PLENTY, ResumeMismatch, Run
from ranks import on_ranks

CPU = torch.device("cpu")
WEIGHTS = {"a": 1.0, "b": 3.0, "c": 4.0}


def operator():
    torch.manual_seed(0)
    return from_diagonal(torch.randn(300, dtype=torch.float64))


def test_products_and_passes_are_counted_as_they_happen():
    run = Run(CPU, WEIGHTS)
    A = metered(operator(), run.meter)
    V = A.domain.random(range(3), 0)
    result = run.stage("a", lambda observe, resume: A @ V)
    torch.testing.assert_close(result, operator() @ V)
    assert (run.costs["a"].products, run.costs["a"].data_passes) == (3, 1)
    assert run.costs["a"].seconds > 0
    assert run.total().products == 3


def test_a_stage_that_is_done_is_not_done_again():
    run = Run(CPU, WEIGHTS)
    assert run.stage("a", lambda observe, resume: 1) == 1
    assert run.stage("a", lambda observe, resume: 2) == 1


def test_without_a_budget_everything_is_allowed():
    assert Run(CPU, WEIGHTS).allowance("a") == PLENTY


def test_a_budget_is_shared_by_the_weights_of_what_is_to_come():
    run = Run(CPU, WEIGHTS, products=80)
    assert run.allowance("a") == 10
    run.meter.products = 10
    assert run.allowance("b") == 30
    run.meter.products = 20  # b was cheaper than allowed: c inherits the rest
    assert run.allowance("c") == 60
    run.meter.products = 500
    assert run.allowance("c") == 0


def test_a_bound_of_time_becomes_products_at_the_rate_seen():
    run = Run(CPU, WEIGHTS, seconds=80.0)
    A = metered(operator(), run.meter)

    def slow(observe, resume):
        time.sleep(0.1)
        return A @ A.domain.random(range(10), 0)

    assert run.allowance("a") == PLENTY  # nothing is known of the rate yet
    run.stage("a", slow)
    rate = run.costs["a"].seconds / 10
    assert run.allowance("b") == pytest.approx(80.0 * 3 / 7 / rate, rel=0.05)
    run.spent_before = 100.0
    assert run.allowance("c") == 0


class Killed(Exception):
    pass


def algorithms():
    return {
        "eigsh": lambda A, observe, resume: eigsh(
            A, 3, which="both", seed=1, rtol=1e-8, observe=observe, resume=resume
        ),
        "density": lambda A, observe, resume: spectral_density(
            A, seed=1, probes=3, steps=12, observe=observe, resume=resume
        ),
    }


@pytest.mark.parametrize("name", list(algorithms()))
def test_a_killed_run_goes_on_where_it_was_and_ends_in_the_same_numbers(name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    algorithm = algorithms()[name]
    whole = Run(CPU, WEIGHTS)
    expected = whole.stage("b", lambda o, r: algorithm(metered(operator(), whole.meter), o, r))

    first = Run(CPU, WEIGHTS, tmp_path / "c.pt", "mark")
    first.stage("a", lambda observe, resume: "kept")
    calls = 0

    def dying(observe, resume):
        def watch(state):
            nonlocal calls
            calls += 1
            stop = observe(state)
            if calls == 20:
                raise Killed
            return stop

        return algorithm(metered(operator(), first.meter), watch, resume)

    with pytest.raises(Killed):
        first.stage("b", dying)

    second = Run(CPU, WEIGHTS, tmp_path / "c.pt", "mark")
    assert second.load()
    assert second.results["a"] == "kept"
    assert second.meter.products > 0
    before = second.meter.products
    again = second.stage("b", lambda o, r: algorithm(metered(operator(), second.meter), o, r))
    for field in ("values", "vectors", "alpha", "beta"):
        if hasattr(expected, field):
            torch.testing.assert_close(getattr(again, field), getattr(expected, field), rtol=1e-10, atol=1e-12)
    assert second.meter.products - before < whole.meter.products  # it did not begin again
    assert second.costs["b"].products >= whole.costs["b"].products


def test_without_a_file_there_is_nothing_to_resume(tmp_path):
    assert not Run(CPU, WEIGHTS, tmp_path / "c.pt", "mark").load()


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    run = Run(CPU, WEIGHTS, tmp_path / "c.pt", "mark")
    run.stage("a", lambda observe, resume: 1)
    with pytest.raises(ResumeMismatch, match="belongs to another run"):
        Run(CPU, WEIGHTS, tmp_path / "c.pt", "other").load()
    (tmp_path / "c.pt").write_bytes(b"garbage")
    with pytest.raises(ResumeMismatch, match="is no checkpoint that this version can read"):
        Run(CPU, WEIGHTS, tmp_path / "c.pt", "mark").load()


# --- two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_stop_by_rank_0s_clock_and_go_on_from_its_file(tmp_path):
    ranks = on_ranks("run_worker", tmp_path)
    assert 40 <= ranks[0]["allowance"] == ranks[1]["allowance"] <= 50
    assert [r["early"] for r in ranks] == [False, False]  # rank 1's time is up, rank 0's is not
    assert [r["late"] for r in ranks] == [True, True]
    assert ranks[1]["asked"] == (True, False)
    for found in ranks:
        assert found["interrupted"]
        assert found["resumed"] == (True, {"a": 7}, 1.0)
        assert "ResumeMismatch" in found["other"]
        assert found["unwritable"].startswith("OSError: rank 0: cannot write")
