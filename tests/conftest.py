"""One thread for torch: the networks of the tests are too small for more, and machines that run tests are busy.

Hypothesis draws the same examples on every run, so that a red run is somebody's change; HYPOTHESIS_PROFILE=hunt draws
others.
"""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True)
settings.register_profile("hunt", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
