import pytest
import torch

from frechet.linalg._density import spectral_density
from frechet.linalg._eigsh import eigsh
from frechet.operators._constructors import from_diagonal
from frechet.report import _run as module
from frechet.report._files import write_atomic
from frechet.report._metered import metered
from frechet.report._run import PLENTY, ResumeMismatch, Run
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
    run.open.discard("a")
    assert run.stage("a", lambda observe, resume: 2) == 1


def test_without_a_budget_everything_is_allowed():
    assert Run(CPU, WEIGHTS).allowance("a") == PLENTY


def test_a_budget_is_shared_by_the_weights_of_the_open_stages():
    run = Run(CPU, WEIGHTS, products=80)
    assert run.allowance("a") == 10
    run.meter.products = 10
    run.open.discard("a")
    assert run.allowance("b") == 30
    run.meter.products = 20  # b was cheaper than allowed: c inherits the rest
    run.open.discard("b")
    assert run.allowance("c") == 60
    run.open.discard("c")
    assert run.allowance("b") == 60  # and what c does not use can go back to b
    run.meter.products = 500
    assert run.allowance("c") == 0


def test_a_share_that_is_too_small_becomes_the_least():
    run = Run(CPU, WEIGHTS, products=16)
    assert run.allowance("a") == 2
    assert run.allowance("a", least=6) == 6
    assert run.allowance("a", least=20) == 16  # there is not so much at all: the stage will say so


def test_what_stages_without_a_result_need_at_least_is_left_for_them():
    run = Run(CPU, WEIGHTS, products=40, leasts={"a": 5, "b": 20, "c": 15})
    assert run.allowance("c", least=15) == 15  # its share would be 20
    run.results["b"] = 1
    assert run.allowance("c", least=15) == 20
    timed = Run(CPU, WEIGHTS, seconds=40.0 / 0.98, leasts={"a": 5, "b": 20, "c": 15}, users={"b": "B", "c": "C"})
    timed.meter.times = {"B": [(1, 1.5)], "C": [(1, 0.5)], "": [(1, 0.5)]}
    assert timed.allowance("c", "C", least=1) == pytest.approx((40 - 30 - 2.5) / 0.5, abs=1)


def test_a_bound_of_time_becomes_products_at_the_rate_of_the_last_ones():
    run = Run(CPU, WEIGHTS, seconds=80.0)
    assert run.allowance("a", "A") == PLENTY  # nothing is known of the rate yet
    run.meter.note("A", 1, 60.0)  # the first product, which loads and compiles
    assert run.allowance("a", "A") == PLENTY
    run.meter.note("A", 10, 1.0)
    run.open.discard("a")
    assert run.allowance("b", "A") == pytest.approx(80.0 * 0.98 * 3 / 7 / 0.1, rel=0.05)
    assert run.allowance("b", "B") == run.allowance("b", "A")  # of B nothing is known but that
    run.meter.note("A", 10, 99.0)
    assert run.allowance("b", "A") < 80.0 * 3 / 7 / 4.9  # the machine has become slower
    run.spent_before = 100.0
    assert run.allowance("c", "A") == 0


def test_a_stage_is_stopped_when_products_have_become_slower_than_its_share_allows():
    run = Run(CPU, WEIGHTS, seconds=80.0)

    def slow(observe, resume):
        early = observe(0)
        run.began -= 40.0
        return early, observe(1)

    assert run.stage("a", slow) == (False, True)


def test_an_open_stage_is_worked_on_again_and_its_costs_add_up():
    run = Run(CPU, WEIGHTS)
    A = metered(operator(), run.meter)
    for _ in range(2):
        run.stage("a", lambda observe, resume: A @ A.domain.random(range(3), 0))
    assert run.costs["a"].products == 6
    run.open.discard("a")
    run.stage("a", lambda observe, resume: A @ A.domain.random(range(3), 0))
    assert run.costs["a"].products == 6


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
    monkeypatch.setattr(module, "SAVE_SHARE", 0.0)
    algorithm = algorithms()[name]
    whole = Run(CPU, WEIGHTS)
    expected = whole.stage("b", lambda o, r: algorithm(metered(operator(), whole.meter), o, r))

    first = Run(CPU, WEIGHTS, tmp_path / "c", "mark", space=operator().domain)
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

    second = Run(CPU, WEIGHTS, tmp_path / "c", "mark", space=operator().domain)
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
    assert not Run(CPU, WEIGHTS, tmp_path / "c", "mark", space=operator().domain).load()


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    run = Run(CPU, WEIGHTS, tmp_path / "c", "mark", space=operator().domain)
    run.stage("a", lambda observe, resume: 1)
    with pytest.raises(ResumeMismatch, match="belongs to another run"):
        Run(CPU, WEIGHTS, tmp_path / "c", "other").load()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 a zip file of an earlier version", "cut", "flipped"])
def test_a_file_that_is_not_whole_is_refused_in_one_sentence(tmp_path, content):
    file = tmp_path / "c"
    run = Run(CPU, WEIGHTS, file, "mark")
    run.stage("a", lambda observe, resume: torch.arange(5.0))
    whole = file.read_bytes()
    if content == "cut":
        content = whole[:-3]
    if content == "flipped":
        content = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    file.write_bytes(content)
    with pytest.raises(ResumeMismatch, match=r"cannot be used, (it was not written by|its checksum is wrong)"):
        Run(CPU, WEIGHTS, file, "mark").load()


def test_a_file_that_cannot_be_written_does_not_end_the_run_and_is_told(tmp_path):
    run = Run(CPU, WEIGHTS, tmp_path / "missing" / "c", "mark")
    assert run.stage("a", lambda observe, resume: 1) == 1
    assert [x.what for x in run.left_out] == ["unfinished results"]
    assert "could not be kept while the run went on: cannot write" in run.left_out[0].why
    assert run.said_kept() == "interrupted before a stage was finished: nothing is kept"


def test_what_an_interrupt_keeps_is_said_truly(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", 1e9)
    run = Run(CPU, WEIGHTS, tmp_path / "c", "mark")
    assert run.said_kept() == "interrupted before a stage was finished: nothing is kept"
    assert not run.interrupt()  # no stage is running that would look at it: the caller raises at once
    run.stage("a", lambda observe, resume: 1)
    assert "1 finished stage are kept" not in run.said_kept()
    assert run.said_kept().startswith("interrupted; 1 finished stage is kept in")

    def asked(observe, resume):
        assert run.interrupt()
        assert not run.interrupt()  # the second time the caller raises at once
        observe(torch.ones(1))

    with pytest.raises(KeyboardInterrupt):
        run.stage("b", asked)
    assert "1 finished stage and the state of 'b' are kept" in run.said_kept()
    later = Run(CPU, WEIGHTS, tmp_path / "c", "mark")
    assert later.load()
    assert later.partial["b"]["state"] == torch.ones(1)


def test_a_file_that_takes_long_to_write_is_written_rarely(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    run = Run(CPU, WEIGHTS, tmp_path / "c", "mark")
    writes = []
    monkeypatch.setattr(module, "write_atomic", lambda path, data: (writes.append(1), write_atomic(path, data)))

    def watched(observe, _resume):
        for i in range(5):
            run.saving = 0.0 if len(run.results) == 0 else 1e6  # seconds that it took last
            observe(i)
        return 0

    run.stage("a", watched)
    assert len(writes) == 6
    run.stage("b", watched)
    assert len(writes) == 7


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
        assert found["unwritable"] == "nothing"  # the run goes on, on all ranks
    assert ranks[0]["told"] == ["unfinished results"]
