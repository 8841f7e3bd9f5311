"""No recording reads memory that no recorded operation has written, however it was filled."""

import pytest
import torch

from frechet.recording._program import Constant, Slot
from frechet.recording._uninitialized import FilledWithNaN, Uninitialized, leaves_uninitialized, overwrites
from frechet.recording._watch import Watch
from recordings import same, vector


def halves(x):
    z = torch.empty(4, 3, dtype=torch.float64)
    z[:2], z[2:] = x[:2], x[2:] * 2
    return z


def corners(x):  # what circular padding does: parts that are not written yet are copied, and written later
    z = x.new_empty(6, 3)
    z[1:5] = x
    z[:, 0] = z[:, 2]
    z[0], z[5] = x[3], x[0]
    return z


def by_numpy(x):
    z = torch.empty_like(x)
    z.numpy()[...] = x.numpy() ** 2
    return z


def partly_by_numpy(x):
    z = torch.empty_like(x)
    z[:2] = x[:2]
    z[2:].numpy()[...] = 3.0
    return z


def scattered(x):
    z = torch.empty(4, 3, dtype=torch.float64)
    return z.index_put_((torch.arange(4),), x)


def as_bytes(x):
    z = torch.empty_like(x)
    z.view(torch.uint8).numpy()[...] = x.contiguous().view(torch.uint8).numpy()
    return z.view(torch.int64).view(torch.float64)


def whole_numbers(x):
    order = torch.empty(4, dtype=torch.long)
    order.numpy()[...] = [2, 0, 3, 1]
    return x[order]


def masked(x):
    z = torch.empty_like(x)
    z.numpy()[...] = 2.0
    return torch.where(x > 0, x, z).mul_(z)


WAYS = (halves, corners, by_numpy, partly_by_numpy, scattered, as_bytes, whole_numbers, masked)


@pytest.mark.parametrize("make", WAYS, ids=lambda f: f.__name__)
def test_no_step_reads_what_no_step_has_written(make):
    x = vector(4, 3, seed=3)
    watch = Watch([vector(3)], float("inf"), (), [x])
    with watch:
        make(x).sum(0)
    assert watch.failure is None
    _no_read_before_a_write(watch.before)


def _no_read_before_a_write(program):
    """Play the steps on flags of what is written, element by element."""
    flags = {slot.index: torch.ones(slot.shape, dtype=torch.bool) for slot in program.inputs}

    def flag(a):
        if isinstance(a, Slot):
            return flags[a.index]
        if isinstance(a, Constant):
            return torch.ones_like(a.of, dtype=torch.bool)
        return type(a)(map(flag, a)) if isinstance(a, list | tuple) else a

    for step in program.steps:
        func = step.operation
        if leaves_uninitialized(func):
            flags[step.results[0].index] = torch.zeros(step.results[0].shape, dtype=torch.bool)
        elif func is torch.ops.aten.view.dtype:
            seen = bool(flags[step.reads[0].index].all())
            flags[step.results[0].index] = torch.full(step.results[0].shape, seen)
        elif func.is_view:
            flags[step.results[0].index] = func(*flag(step.args))
        elif step.operation is torch.ops.aten.copy_.default:
            flags[step.writes[0].index].copy_(flag(step.args[1]))
        else:
            for a in step.reads:
                assert bool(flags[a.index].all()), step
            for r in step.results:
                flags[r.index] = torch.ones(r.shape, dtype=torch.bool)


def test_flags_are_kept_by_element():
    known, t = Uninitialized(), torch.empty(3, 4)
    known.add(t)
    assert known.holds(t[1:])
    known.write(t[:2])
    assert not known.holds(t[:2])
    assert known.holds(t[1:])
    known.write(t[2, ::2])
    known.write(t.t()[1::2, 2])
    assert not known.holds(t)
    assert not known.written


def test_a_copy_of_unwritten_memory_is_unwritten():
    known, t, u = Uninitialized(), torch.empty(4), torch.zeros(4)
    known.add(t)
    known.write(t[:2])
    known.write(u, t)
    assert not known.holds(u[:2])
    assert known.holds(u[2:])
    known.write(u[2:], torch.ones(2))
    assert not known.holds(u)


def test_memory_seen_in_another_size_of_elements_counts_as_unwritten():
    known, t = Uninitialized(), torch.empty(4, dtype=torch.float64)
    known.add(t)
    known.write(t.view(torch.float32))
    assert known.holds(t)
    known.write(t[:2])
    assert known.holds(t.view(torch.float32)[:2])


def test_what_is_overwritten_is_not_read():
    aten, a, b = torch.ops.aten, torch.zeros(2), torch.ones(2)
    assert overwrites(aten.fill_.Scalar, (a, 1.0), {}) == [a]
    assert len(overwrites(aten.copy_.default, (a, b), {})) == 2  # what is unwritten in the source stays so
    assert overwrites(aten.mul.out, (a, b), {"out": a})[0] is a
    assert overwrites(aten.add_.Tensor, (a, b), {}) == []


def test_uninitialized_memory_is_filled_while_a_recording_is_proved():
    with FilledWithNaN():
        same([torch.empty(2).isnan(), torch.empty_like(torch.ones(2)).isnan()], [torch.ones(2).bool()] * 2)
        assert bool(torch.empty(2, dtype=torch.complex64).isnan().all())
        assert torch.ones(2).new_empty(2, dtype=torch.int32).tolist() == [2**31 - 1] * 2
        assert torch.zeros(2).tolist() == [0.0, 0.0]
