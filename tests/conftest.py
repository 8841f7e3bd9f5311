"""One thread: the tensors of the tests are small, and two threads that wait for each other are slower than one.

torch loads rules of forward mode when it is first used, with a warning of its own: here, so that no test depends on
which one is first.

Two million objects are made while tests are collected and live as long as the run. The cyclic garbage collector neither
looks for garbage then nor looks at them again: a pass over all of them takes a second and a half.
"""

import gc
import warnings

import torch
from torch.autograd import forward_ad

torch.set_num_threads(1)

with warnings.catch_warnings(), forward_ad.dual_level():
    warnings.simplefilter("ignore")
    forward_ad.make_dual(torch.zeros(1), torch.zeros(1))

gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
