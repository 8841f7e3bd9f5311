import math
import pickle
import random

import pytest
import torch

from frechet.linalg._density import spectral_density
from frechet.linalg._eigsh import eigsh
from frechet.linalg._result import Status, exact_estimate
from frechet.operators._constructors import from_diagonal
from frechet.report._schema import Cost
from frechet.report._state import Damaged, packed, unpacked
from frechet.space import Space

CPU = torch.device("cpu")


def again(x, space=None):
    return unpacked(packed(x), space, CPU)


@pytest.mark.parametrize(
    "x",
    [
        None, True, 3, 2**70, "text", 1.5, 1e-320, (1, (2.0, "a"), ()), [1, [2]], {"a": {"b": (1,)}}, Status.STOPPED,
        Cost(1, 2, 3.0, None, "s"),
    ],
)  # fmt: skip
def test_plain_values_survive_with_their_types(x):
    found = again(x)
    assert found == x
    assert type(found) is type(x)


def test_numbers_that_json_lacks_survive():
    assert math.isnan(again(math.nan))
    assert again((math.inf, -math.inf)) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_tensors_survive_bit_for_bit(dtype, shape):
    x = torch.randn(shape).mul(100).to(dtype)
    found = again([x, x.T if x.ndim == 2 else x])
    assert found[0].dtype == dtype
    assert torch.equal(found[0], x)
    assert torch.equal(found[1], x.T if x.ndim == 2 else x)


def test_results_of_algorithms_survive():
    A = from_diagonal(torch.linspace(1, 9, 40, dtype=torch.float64))
    spectrum = again(eigsh(A, 3, seed=0), A.domain)
    assert torch.equal(spectrum.values, eigsh(A, 3, seed=0).values)
    assert spectrum.space == A.domain
    density = again(spectral_density(A, seed=0, probes=2, steps=5), A.domain)
    assert float(density.trace_of(lambda t: t)) == float(
        spectral_density(A, seed=0, probes=2, steps=5).trace_of(lambda t: t)
    )
    assert again(exact_estimate(2.0)).exact


def test_what_is_not_plain_is_not_written():
    for x in (object(), lambda: 0, {1: 2}, torch.nn.Linear(1, 1), Space(("a",), ((1,),), torch.float32).__class__):
        with pytest.raises(TypeError, match="packed: values must be plain"):
            packed(x)


def test_each_flipped_bit_is_seen():
    content = packed({"a": torch.arange(6.0), "b": [1.5, "text"]})
    rng = random.Random(0)
    for _ in range(400):
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        with pytest.raises(Damaged):
            unpacked(bytes(damaged), None, CPU)


def test_each_cut_is_seen():
    content = packed([torch.arange(3.0)])
    for length in range(len(content)):
        with pytest.raises(Damaged):
            unpacked(content[:length], None, CPU)


class Runs:
    def __reduce__(self):
        return (pytest.fail, ("a file ran code",))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_planted_file_runs_nothing(tmp_path, wrapped):
    content = pickle.dumps(Runs())
    if wrapped:
        torch.save({"fingerprint": "x", "results": Runs()}, tmp_path / "planted")
        content = (tmp_path / "planted").read_bytes()
    with pytest.raises(Damaged, match="it was not written by this version"):
        unpacked(content, None, CPU)


def test_a_file_with_a_right_checksum_names_nothing_but_the_known_records():
    import hashlib

    from frechet.report._state import MAGIC

    for text in (
        '{"$record": ["Path", {}]}',
        '{"$record": ["Cost", {"x": 1}]}',
        '{"$call": "os.system"}',
        "{}",
        "nope",
    ):
        body = len(text).to_bytes(8, "little") + text.encode()
        with pytest.raises(Damaged, match="its content is not that of this version"):
            unpacked(MAGIC + hashlib.sha256(body).digest() + body, None, CPU)
