import pytest
import torch

from frechet.report import _threads as threads


@pytest.fixture
def four(monkeypatch):
    """A process of four threads whose products take what `costs` says by their number."""
    state = {"threads": 4, "costs": {1: 0.1, 4: 0.3}, "clock": 0.0, "products": 0}
    monkeypatch.setattr(torch, "set_num_threads", lambda n: state.update(threads=n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: state["threads"])
    monkeypatch.setattr(threads.time, "perf_counter", lambda: state["clock"])

    def product():
        state["clock"] += state["costs"][state["threads"]]
        state["products"] += 1

    return state, product


@pytest.mark.parametrize(("costs", "best"), [({1: 0.1, 4: 0.3}, 1), ({1: 0.3, 4: 0.1}, 4)])
def test_the_faster_number_of_threads_is_kept_and_said(four, costs, best):
    state, product = four
    state["costs"] = costs
    said = threads.faster(product)
    assert state["threads"] == best
    assert said.startswith(
        "1 thread: a product takes 100 ms, with 4" if best == 1 else "4 threads: a product takes 100 ms"
    )
    assert state["products"] == 4


def test_a_slow_product_is_timed_once_each_way(four):
    state, product = four
    state["costs"] = {1: 3.0, 4: 1.0}
    threads.faster(product)
    assert state["products"] == 2


def test_the_users_choice_is_kept(monkeypatch):
    for name in (*threads.CHOSEN, *threads.PASSIVE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert not threads.fixed(None)
    assert threads.fixed(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads.fixed(None)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert threads.fixed(None)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_waiting_threads_sleep_unless_the_user_has_settings(monkeypatch, name):
    for known in list(threads.os.environ):
        if known.startswith(threads.OPENMP):
            monkeypatch.delenv(known)
    assert threads.waiting_policy() == {"OMP_WAIT_POLICY": "PASSIVE"}
    monkeypatch.setenv(name, "1")
    assert threads.waiting_policy() == {}


def test_the_process_gets_its_threads_back():
    before = torch.get_num_threads()
    with threads.restored():
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before
