"""One thread for torch: the networks of the tests are too small for more, and machines that run tests are busy."""

import torch

torch.set_num_threads(1)
