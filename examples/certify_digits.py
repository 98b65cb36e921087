"""Certify some digits: one batch by hand, one question that takes few draws, and the whole journey with an attack."""

import torch

import robustkit as rk

model = rk.load("demo:mnist-smooth")  # trained on noisy digits
x, y = rk.open_data("demo:mnist").take(range(24))

# A certifier is a call. No input closer than the radius gets another class from the vote under noise.
plain, dual = rk.Smoothing(sigma=0.25, n=1000), rk.DualSmoothing(sigma=0.25, n=500)  # as many draws in all
for method in (plain, dual):
    found = method(model, x)
    at = ", ".join(f"{found.accuracy(y, radius):.0%} at {radius}" for radius in (0.0, 0.25, 0.5))
    print(f"{method.text}: {found}; certified accuracy {at}")

# "Is the radius at least R?" is cheaper than "what is the radius?": most samples are decided after a few hundred draws.
for radius in (0.25, 0.5):
    found = rk.Smoothing(sigma=0.25, n=5_000, mode="decide", radius=radius)(model, x)
    print(f"radius {radius}: {found}, draws: median {int(found.n.median())}, most {int(found.n.max())} of 5000")

# With checks before, a folder that a killed run goes on in, a page, and an attack on the certificates.
result = rk.certify(model, (x[:5], y[:5]), plain, falsify="pgd:steps=3", out="certified")
print(result)
attack = result.data["falsification"]
print(f"attack: {attack['found']} of {attack['tried']} answers changed, {attack['contradictions']} inside a radius")
found = result.certificate()
print("certified radius, and how far the attack had to go:")
print(torch.stack([found.radius, found.witness_distance], 1).tolist())
print("the page:", result.path / "report.html")
