"""Certify the pixels of a segmentation: each has its class for every input near the image, or abstains."""

import robustkit as rk

model = rk.load("demo:shapes-segmentation")
x, y = rk.open_data("demo:shapes").take(range(2))
labelled = y != model.task.ignore_index

# alpha is that of a whole image: the probability that any of its certified pixels is wrong.
for method in (
    rk.Smoothing(sigma=0.1, n=200, radius=0.1),
    rk.Smoothing(sigma=0.1, n=200, radius=0.1, correction="holm"),  # sharper, for one radius
):
    found = method(model, x)
    right = (found.certified & (found.prediction == y))[labelled].double().mean()
    print(f"{method.text}: {right:.1%} of the labelled pixels are certified and right, {found.reasons}")

result = rk.certify(model, (x, y), "smoothing:sigma=0.1,n=200", out="certified-shapes")
print(result, "abstained:", f"{result.abstained:.1%}")
print("the page:", result.path / "report.html")
