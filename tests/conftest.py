"""One thread: the tensors of the tests are small, and two threads that wait for each other are slower than one."""

import torch

torch.set_num_threads(1)
