"""The Triton twins, run by Triton's interpreter on the CPU, against their torch references."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

SCRIPT = '''
import math, sys
import torch
from robustkit.kernels import balls, triton_ops

def close(a, b, dtype):
    room = {torch.float64: 1e-6, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert a.dtype == b.dtype == dtype and a.shape == b.shape
    assert (a.double() - b.double()).abs().max() <= room, (a - b).abs().max()

def steps():
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for shape in ((1, 1), (3, 7), (2, 3, 5, 5), (2, 1, 33, 41)):
            g = torch.Generator().manual_seed(0)
            x = torch.rand(shape, generator=g).to(dtype)
            adv = (x + 0.1 * torch.randn(shape, generator=g).to(dtype)).clamp(0, 1)
            grad = torch.randn(shape, generator=g).to(dtype)
            grad.view(-1)[0] = 0
            grad[-1] = 0 if len(grad) > 2 else grad[-1]
            for eps in (0.15, torch.linspace(0.0, 0.3, shape[0])):
                for name in ("step_linf", "step_l2"):
                    twin, reference = (getattr(m, name)(adv, x, grad, 0.07, eps, 0.0, 1.0) for m in (triton_ops, balls))
                    close(twin, reference, dtype)

def tiny_gradients():
    x = torch.full((2, 40), 0.5)
    grad = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    for scale in (1e-20, 1e-40):
        pair = [ops.step_l2(x, x, grad * scale, 0.1, 0.2, 0.0, 1.0) for ops in (triton_ops, balls)]
        close(*pair, torch.float32)
        assert ((pair[0] - x).norm(dim=1) - 0.1).abs().max() < 1e-5

def philox(key, counter):
    """Philox 4x32-10, as Salmon et al. 2011 define it, in plain integers; the first word."""
    low, high = key & 0xFFFFFFFF, key >> 32
    c = [counter, 0, 0, 0]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ low, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ high, a & 0xFFFFFFFF]
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return c

def unit(word):
    signed = word - 2**32 if word >= 2**31 else word
    return (-signed - 1 if signed < 0 else signed) * 4.6566127342e-10

def noise():
    keys = [3, 2**62 + 12345, 77]
    out = torch.empty(3, 5, 7)
    triton_ops.keyed("uniform", torch.tensor(keys), out)
    for row, key in zip(out.flatten(1), keys):
        for counter in (0, 1, 34):
            assert abs(float(row[counter]) - unit(philox(key, counter)[0])) < 1e-6
    again = torch.empty(1, 5, 7)
    triton_ops.keyed("uniform", torch.tensor(keys[1:2]), again)
    assert torch.equal(again[0], out[1])
    normal = torch.empty(2, 3000)
    triton_ops.keyed("normal", torch.tensor(keys[:2]), normal)
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    words = philox(keys[0], 4)
    radius = math.sqrt(-2 * math.log(max(unit(words[0]), 1e-7)))
    assert abs(float(normal[0, 4]) - radius * math.cos(2 * math.pi * unit(words[1]))) < 1e-4
    whole = torch.empty(3, 5, 7, dtype=torch.int64)
    triton_ops.keyed("whole", torch.tensor(keys), whole)
    for row, key in zip(whole.flatten(1), keys):
        for counter in (0, 1, 34):
            high, low = (word & 0x3FFFFFFF for word in philox(key, counter)[:2])
            assert int(row[counter]) == (high << 30) + low

{"steps": steps, "tiny": tiny_gradients, "noise": noise}[sys.argv[1]]()
'''


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("part", ["steps", "tiny", "noise"])
def test_twins_in_the_interpreter(part):
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, part], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
