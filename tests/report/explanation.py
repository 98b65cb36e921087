"""A finished explanation, made up: two pictures, one wide and one attacked, and methods of every kind."""

import json

import numpy as np
from PIL import Image

RADIUS = 12.0


def bump(h, w, y, x, radius):
    """A hill (h, w) of height 1."""
    rows, columns = np.mgrid[:h, :w]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * radius**2)).astype(np.float32)


def maps(seed, h=56, w=56):
    """Arrays of a gradient with errors, of regions, and of a coarse map."""
    rng = np.random.default_rng(seed)
    hill = bump(h, w, 0.4 * h, 0.6 * w, h / 6)
    gradient = (hill * rng.normal(size=(3, h, w)) * 0.02).astype(np.float32)
    error = np.full((3, h, w), 0.002, np.float32)
    blocks = np.kron(np.arange(16).reshape(4, 4), np.ones((h // 4, w // 4), int))
    means = np.array([hill[blocks == k].mean() for k in range(16)], np.float32)
    ranks = np.argsort(np.argsort(-means))[blocks] + 1
    return [
        {"values": gradient, "standard_error": error},
        {"values": means[blocks][None], "ranks": ranks},
        {"values": bump(h, w, 0.5 * h, 0.5 * w, h / 5)[None]},
    ]


METHODS = [
    {"label": "smoothgrad:samples=50", "name": "smoothgrad", "options": {"samples": 50, "noise_level": 0.15}}
    | {"signed": True, "pixels": False, "source": "https://arxiv.org/abs/1706.03825"},
    {"label": "xrai", "name": "xrai", "options": {"mode": "full"}, "signed": True, "pixels": True, "source": None},
    {"label": "gradcam", "name": "gradcam", "options": {}, "signed": False, "pixels": True, "source": None},
]
EVALUATION = {
    "insertion": {"mean": 0.61, "blur": 0.7},
    "deletion": {"mean": 0.12, "blur": 0.2},
    "max_sensitivity": 0.3,
    "randomisation": {"layers": ["classifier", "conv_head"], "spearman": [0.4, 0.05], "last": 0.05},
}


def make_explanation(path, images=2, pair=False, evaluate=False, size=56, arrays=maps, **changes):
    """Write a finished run into a folder and return the folder; ``changes`` replace parts of the results."""
    (path / "maps").mkdir(parents=True)
    (path / "images").mkdir()
    entries = []
    for i in range(images):
        for variant in ("clean", "adversarial") if pair else (None,):
            entries.append(_image(path, i, variant, evaluate, size, arrays))
    results = {
        "schema_version": "1.0",
        "kind": "explanation",
        "complete": True,
        "robustkit": "0.1.0",
        "model": {"name": "demo:made-up", "task": "classification", "device": "cpu", "sha256": "a" * 64},
        "data": {"name": "demo:photos", "size": images},
        "target": "predicted",
        "output": "logit",
        "seed": 0,
        "methods": [{**method, "cost": {"forwards": 100, "backwards": 100}} for method in METHODS],
        "images": entries,
        "evaluation": _judgement() if evaluate else None,
        "pair": {"run": "runs/a", "attack": "pgd:steps=40"} if pair else None,
        "times": {"seconds": 12.3},
    }
    write(path / "results.json", {**results, **changes})
    command = ["robustkit", "explain", "demo:made-up", "--data", "demo:photos", "--method", "smoothgrad", "--out"]
    write(path / "run.json", {"command": [*command, "a run"], "versions": {"python": "3.11.7", "robustkit": "0.1.0"}})
    (path / "config.yaml").write_text("model: demo:made-up\nseed: 0\n", encoding="utf-8")
    return path


def _image(path, i, variant, evaluate, size, arrays):
    rng = np.random.default_rng(i)
    name = f"{i:05d}" + ("-adversarial" if variant == "adversarial" else "")
    wide = size * 3 // 2 if i % 2 else size
    pixels = np.kron(rng.integers(40, 220, (4, 6, 3)), np.ones((size // 4, -(-wide // 6), 1)))[:, :wide]
    Image.fromarray(pixels.astype(np.uint8)).save(path / "images" / f"{name}.png")
    left = (wide - size) / 2
    found = []
    for k, stored in enumerate(arrays(i + 10 * (variant == "adversarial"))):
        file = f"maps/{name}_{METHODS[k]['name']}.npz"
        h, w = stored["values"].shape[1:]
        np.savez_compressed(path / file, x=np.full((3, h, w), 0.5, np.float32), **stored)
        total = np.abs(stored["values"]).sum(0)
        found.append(
            {
                "method": k,
                "file": file,
                "heat": file.replace(".npz", "_heat.png"),
                "overlay": file.replace(".npz", "_overlay.png"),
                "min": float(total.min()),
                "max": float(total.max()),
                "residual": -0.25 if k == 1 else None,
                "relative_residual": 0.031 if k == 1 else None,
                "relative_error": 0.087 if k == 0 else None,
                "fixed_point_residual": 0.0076 if k == 2 else None,
                "notes": ["a residual above 5 %: <b>more</b> steps"] if k == 1 and i == 0 else [],
                "similarity": {"top_k": 0.31, "spearman": 0.42, "cosine": 0.5} if variant == "adversarial" else None,
                "evaluation": EVALUATION if evaluate else None,
            }
        )
    return {
        "id": i,
        "variant": variant,
        "name": "<script>alert(1)</script>.jpg" if i == 1 else f"photo {i}.jpg",
        "picture": f"images/{name}.png",
        "width": wide,
        "height": size,
        "box": [left, 0, left + size, size],
        "label": 3,
        "label_name": "tabby",
        "target": 4,
        "target_name": "tiger cat",
        "value": 9.25,
        "top": [{"class": 4, "name": "tiger cat", "p": 0.61}, {"class": 3, "name": "tabby", "p": 0.2}],
        "maps": found,
        "controls": [{"name": "random map", "evaluation": EVALUATION}] if evaluate else None,
    }


def _judgement():
    row = {"insertion_mean": 0.61, "deletion_mean": 0.12, "max_sensitivity": 0.3, "randomisation": 0.05}
    rows = [{"name": m["label"], "control": False, **row} for m in METHODS]
    rows[2] |= {"insertion_mean": 0.2, "deletion_mean": 0.5}
    controls = [("random map", 0.31, 0.4), ("Sobel edges", 0.42, 0.3)]
    rows += [{"name": n, "control": True, "insertion_mean": a, "deletion_mean": b} for n, a, b in controls]
    return {
        "rows": rows,
        "texts": ["Insertion: the sooner the class is found, the better."],
        "cascade": {m["label"]: [0.5, 0.2, 0.05 * k] for k, m in enumerate(METHODS)} | {"Sobel edges": [1.0] * 3},
    }


def write(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
