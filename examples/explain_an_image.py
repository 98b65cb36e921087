"""Explain some images by two methods, and a pair of clean and adversarial inputs by one."""

import robustkit as rk
from robustkit.explain.metrics.similarity import similarity

model = rk.load("demo:mnist-plain")
x, y = rk.open_data("demo:mnist").take(range(4))

found = rk.explain(model, (x, y), "smoothgrad:samples=20,integrated:steps=20", target="label", out="maps")
for image in found.data["images"]:
    smooth, integrated = image["maps"]
    print(
        f"{image['name']}: class {image['target_name']}, logit {image['value']:.2f}; "
        f"smoothgrad +-{smooth['relative_error']:.0%}, integrated misses {integrated['relative_residual']:.1%}"
    )
print("the page:", found.path / "report.html")

# One method by itself is a call, too, and the result can be drawn: .to_image(), .plot(), .save(folder).
adversarial = rk.PGD(threat=rk.Linf(0.2))(model, x, y).adversarial
method = rk.SmoothGrad(samples=20)
clean, attacked = (method(model, inputs, y).pixel_map() for inputs in (x, adversarial))
print("rank correlation of the maps before and after the attack:", similarity(clean, attacked)["spearman"].tolist())
