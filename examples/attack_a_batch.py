"""Attack one batch and look at what came out."""

import robustkit as rk

model = rk.load("demo:mnist-plain")
x, y = rk.open_data("demo:mnist").take(range(32))

found = rk.PGD(threat=rk.L2(1.5), steps=40)(model, x, y)
print(f"broken: {found.success.sum()} of {len(x)}")
print(f"median distance: {found.distance[found.success].median():.3f}")
print(f"cost: {found.cost.forwards} forwards, {found.cost.backwards} backwards")
