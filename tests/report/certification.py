"""A finished certification, made up: radii of samples drawn once, and everything else counted from them."""

import json
from functools import partial
from statistics import fmean, median

import numpy as np
from safetensors.numpy import save_file

SAMPLES, CLASSES, LIMIT, SIGMA = 200, 10, 0.7997, 0.25
NAMES = ["plain", "circle", "square", "cross"]
"""Of the classes of dense outputs."""
ATTACK = {
    "attack": "pgd:steps=20",
    "tried": 180,
    "found": 164,
    "certificates": 178,
    "contradictions": 0,
    "expected": 0.21,
    "p_value": 1.0,
    "invalid": False,
    "error": 0.001,
    "samples": 64,
    "median_distance": 0.91,
}
REASONS = [
    {"text": "abstained: no class is shown to be the most likely one", "count": 14},
    {"text": "certified, but not up to the radius asked for", "count": 30},
]


def make_rows(n=SAMPLES, seed=0):
    """Label, class (-1 without one), radius, and distance of the closest input with another class of each sample."""
    rng = np.random.default_rng(seed)
    radius = np.minimum(np.abs(rng.normal(0.55, 0.25, n)), LIMIT).round(4)
    label = rng.integers(0, CLASSES, n)
    wrong, nothing = rng.random(n) < 0.05, rng.random(n) < 0.07
    prediction = np.where(nothing, -1, np.where(wrong, (label + 1) % CLASSES, label))
    return [
        {"label": int(y), "prediction": int(p), "radius": float(r) if p >= 0 else 0.0, "distance": float(r + 0.15 + d)}
        for y, p, r, d in zip(label, prediction, radius, rng.exponential(0.2, n), strict=True)
    ]


def make_curve(rows, radii, attacked):
    label, prediction, radius, distance = (
        np.array([row[name] for row in rows]) for name in ("label", "prediction", "radius", "distance")
    )
    right, known = prediction == label, prediction >= 0
    found = []
    for r in radii:
        shown = float((right & (radius >= r)).mean())
        held = float(((right | ~known) & (distance > r)).mean())
        found.append(
            {
                "radius": r,
                "certified_accuracy": shown,
                "interval": [max(0.0, shown - 0.06), min(1.0, shown + 0.06)],
                "certified": float((known & (radius >= r)).mean()),
                "empirical": held if attacked else None,
            }
        )
    return found


def make_results(*, radius=0.25, decide=False, attack=ATTACK, dense=False, limit=LIMIT):
    """``results.json``; without a radius the largest that could be shown was wanted."""
    rows = make_rows()
    asked = radius or 0.0
    radii = [0.0, asked] if decide else sorted({*np.linspace(0, limit, 65).tolist(), asked})
    curve = make_curve(rows, radii, attack is not None and not dense)
    if decide:
        curve[0] |= {key: curve[1][key] for key in ("certified_accuracy", "interval", "certified")}
    shown = sum(row["prediction"] >= 0 and row["radius"] >= asked for row in rows)
    word = f",mode=decide,radius={radius:g}" if decide else f",radius={radius:g}" if radius is not None else ""
    results = {
        "schema_version": "1.0",
        "kind": "certification",
        "complete": True,
        "valid": True,
        "forced": False,
        "robustkit": "0.1.0",
        "model": _model(dense),
        "data": {"name": "demo:made-up", "sha256": "b" * 64, "size": 1000, "n": SAMPLES, "limit": SAMPLES},
        "n": SAMPLES,
        "seed": 0,
        "method": {
            "label": f"dual-smoothing:sigma=0.25,n=10000{word}",
            "name": "dual-smoothing",
            "version": 1,
            "summary": "Two halves of the pixels are smoothed, each by its own noise.",
            "options": {"sigma": 0.25, "n": 10_000, "grid": False},
            "source": "https://arxiv.org/abs/2404.09586",
        },
        "property": {"norm": "l2", "radius": radius, "text": "stability: every input gets the class of its sample"},
        "verifier": {
            "kind": "probabilistic",
            "complete": False,
            "access": "closed box",
            "alpha": 0.001,
            "beta": 0.001 if decide else None,
            "mode": "decide" if decide else "radius",
            "max_radius": limit,
            "text": "each certificate is wrong with probability at most 0.001 over its own random draws",
        },
        "arithmetic": "the network as it computes in float32; Gaussian noise in float32",
        "clean_accuracy": 0.965,
        "clean_interval": [0.929, 0.986],
        "smoothed_accuracy": 0.95,
        "certified_accuracy": next(p for p in curve if p["radius"] >= asked)["certified_accuracy"],
        "interval": next(p for p in curve if p["radius"] >= asked)["interval"],
        "radius": asked,
        "abstained": fmean(row["prediction"] < 0 for row in rows),
        "average_certified_radius": None if decide else fmean(_right(row) for row in rows),
        "curve": curve,
        "per_class": [_of_class(c, rows, dense) for c in range(len(NAMES) if dense else CLASSES)],
        "dense": None,
        "outcomes": {"certified": shown, "falsified": 0, "unknown": SAMPLES - shown},
        "reasons": list(REASONS),
        "linf": {"dimension": 784, "factor": 784**-0.5},
        "draws": {
            "selection": 100,
            "votes": 2,
            "median": 448.0 if decide else 20_000.0,
            "max": 20_000,
            "total": 412_000 if decide else SAMPLES * 20_000,
            "cap": 20_000,
        },
        "nan_answers": {"count": 0, "share": 0.0},
        "falsification": None if attack is None or dense else dict(attack),
        "diagnostics": [make_check("D2"), make_check("D16", status="WARN")],
        "notes": [],
        "cost": {"forwards": 4_020_000, "backwards": 12_000 if attack and not dense else 0},
        "gallery": _gallery(rows, dense, attack is not None),
        "times": {
            "started": "2026-01-02T03:04:05.678+00:00",
            "finished": "2026-01-02T03:10:05+00:00",
            "seconds": 360.0,
            "last_session_seconds": 360.0,
            "stages": {"certify": 300.0, "falsify": 60.0},
            "peak_memory_bytes": 657829888,
        },
    }
    return {**results, **_dense_parts(results)} if dense else results


def make_check(name, status="PASS"):
    """A line of the preflight."""
    said = {"message": "the same answer twice", "remedy": "" if status == "PASS" else "Look at the labels."}
    return {"id": name, "title": "answers are steady", "status": status, "value": 0.0, "threshold": "<= 1e-5", **said,
            "invalidates": True}  # fmt: skip


def _right(row):
    return row["radius"] if row["prediction"] == row["label"] else 0.0


def _model(dense):
    return {
        "name": "demo:mnist-smooth",
        "task": "segmentation" if dense else "classification",
        "parameters": 81434,
        "outputs": [len(NAMES), 24, 32] if dense else CLASSES,
        "class_names": NAMES if dense else None,
        "mean": [0.1307],
        "std": [0.3081],
        "bounds": [0.0, 1.0],
        "sha256": "a" * 64,
        "input_shape": [3, 24, 32] if dense else [1, 28, 28],
        "dtype": "float32",
        "device": "cpu",
        "eot": 1,
    }


def _of_class(c, rows, dense):
    own = [row for row in rows if row["label"] == c]
    return {
        "class": c,
        "name": NAMES[c] if dense else str(c),
        "n": len(own),
        "clean_accuracy": None if dense else 0.95,
        "certified_accuracy": fmean(_right(row) >= 0.25 for row in own),
        "abstained": fmean(row["prediction"] < 0 for row in own),
        "median_radius": median(map(_right, own)),
    }


def _gallery(rows, dense, attacked):
    if dense:
        return [_entry(i, None, dense, attacked) for i in range(2)]
    nothing = next(row for row in rows if row["prediction"] < 0)
    wrong = next(row for row in rows if row["prediction"] not in (-1, row["label"]))
    chosen = [*sorted(rows, key=_right)[: -SAMPLES // 2 : -33], nothing, wrong]
    return [_entry(i, row, dense, attacked) for i, row in enumerate(chosen)]


def _entry(i, row, dense, attacked):
    if dense:
        names = ("label", "prediction", "choice", "radius", "distance", "confidence")
        empty = dict.fromkeys([*names, "label_name", "prediction_name", "choice_name"])
        return {"id": i, **empty, "outcome": "unknown", "reason": "11.2 % of the pixels are not certified",
                "certified": 0.888}  # fmt: skip
    known = row["prediction"] >= 0
    return {
        "id": i,
        "label": row["label"],
        "label_name": str(row["label"]),
        "prediction": row["prediction"],
        "prediction_name": str(row["prediction"]) if known else "abstains",
        "choice": row["label"],
        "choice_name": str(row["label"]),
        "radius": row["radius"],
        "outcome": "certified" if row["radius"] >= 0.25 else "unknown",
        "reason": "" if row["radius"] >= 0.25 else REASONS[not known]["text"],
        "distance": row["distance"] if attacked and known else None,
        "confidence": 0.99 if known else 0.52,
        "certified": None,
    }


def _dense_parts(results):
    return {
        "clean_interval": None,
        "interval": None,
        "curve": [{**point, "interval": None} for point in results["curve"]],
        "dense": {"fraction_certified": 0.81, "pixels": 768, "labelled": 150_000, "correction": "holm", "miou": 0.66},
        "reasons": [{"text": "some pixels are not certified", "count": 180}],
    }


def make_pictures(results, seed=0):
    """The tensors of the gallery."""
    rng = np.random.default_rng(seed)
    many, shape = len(results["gallery"]), results["model"]["input_shape"]
    rows, columns = np.mgrid[: shape[-2], : shape[-1]]
    hill = np.exp(-((rows - shape[-2] / 2) ** 2 + (columns - shape[-1] / 2) ** 2) / 40)
    original = np.stack([np.broadcast_to(np.roll(hill, i, -1), shape) for i in range(many)]).astype(np.float32)
    found = {"original": original, "noisy": original + rng.normal(0, SIGMA, original.shape).astype(np.float32)}
    if results["dense"] is None:
        return {**found, "witness": original + rng.normal(0, 0.03, original.shape).astype(np.float32)}
    label = np.stack([(np.roll(hill, i, -1) > 0.4) * (1 + i) for i in range(many)]).astype(np.int16)
    edge = (hill > 0.3) & (hill < 0.5)
    radius = np.where(edge, 0, 0.2 + 0.1 * hill).astype(np.float32) * np.ones((many, 1, 1), np.float32)
    void = np.where(rows < 2, 255, label).astype(np.int16)
    return {**found, "label": void, "prediction": np.where(edge, -1, label).astype(np.int16), "radius": radius}


make_dense = partial(make_results, dense=True, radius=0.1)


def make_certification(path, results=None, **changes):
    """Write a finished run into a folder and return the folder; ``changes`` replace parts of the results."""
    path.mkdir(parents=True, exist_ok=True)
    results = {**(results or make_results()), **changes}
    write(path / "results.json", results)
    command = ["robustkit", "certify", "demo:mnist-smooth", "--data", "demo:made-up", "--method"]
    versions = {"python": "3.11.7", "robustkit": "0.1.0", "torch": "2.9.0"}
    header = {"command": [*command, results["method"]["label"], "--out", "a run"], "versions": versions}
    header |= {"platform": "Linux-6.1", "device": "cpu", "config_sha256": "c" * 64}
    write(path / "run.json", {**header, "created": "2026-01-02T03:04:05.678+00:00"})
    (path / "config.yaml").write_text("model: demo:mnist-smooth\nmethod: dual-smoothing\nseed: 0\n", encoding="utf-8")
    if results["gallery"]:
        tensors = {name: np.ascontiguousarray(value) for name, value in make_pictures(results).items()}
        save_file(tensors, path / "gallery.safetensors")
    return path


def write(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
