"""A finished run, made up: 60 drawn digits, 2 attacks, one class whose name is an attack on the report itself."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.stats import binomtest

NAMES = ["0", "1", "2", "<script>alert(1)</script>", "4", "5", "6", "7", "=8|`*[x](http://x)", "9"]
LABELS = ["fgsm", "pgd:steps=40"]
EPS = 0.2
SEGMENTS = ["abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcfgd"]
PLACES = {
    "a": (slice(4, 7), slice(8, 20)),
    "b": (slice(4, 15), slice(17, 20)),
    "c": (slice(13, 24), slice(17, 20)),
    "d": (slice(21, 24), slice(8, 20)),
    "e": (slice(13, 24), slice(8, 11)),
    "f": (slice(4, 15), slice(8, 11)),
    "g": (slice(12, 15), slice(8, 20)),
}
DIAGNOSTICS = [
    ("D1", "gradients are usable", "PASS", 0.0, "<= 0.05", "finite and not zero", "", True),
    ("D2", "predictions are stable", "PASS", 1e-7, "<= 0.0001", "equal inputs give equal outputs", "", True),
    (
        "D4",
        "the attack has converged",
        "WARN",
        0.02,
        "<= 0.01",
        "twice the steps break 2.0 % more",
        "Give more steps.",
        False,
    ),
    ("D5", "transfer is weaker", "NOT RUN", None, "<= 0", "no surrogate given", "Give --surrogate.", False),
    (
        "D8",
        "iterative beats single-step",
        "FAIL",
        0.03,
        "<= 0",
        "a <b>single</b> step | breaks more",
        "More steps.",
        False,
    ),
    ("D17", "stored inputs still break the model", "PASS", 0.0, "0", "all 20 of 20 hold", "", True),
]
KEYS = ("id", "title", "status", "value", "threshold", "message", "remedy", "invalidates")


def digit(label, rng):
    """A seven-segment digit, somewhat noisy: (1, 28, 28) in [0, 1]."""
    image = np.zeros((28, 28), np.float32)
    for segment in SEGMENTS[label]:
        image[PLACES[segment]] = 0.9
    image = (image + np.roll(image, 1, 0) + np.roll(image, 1, 1)) / 3
    return np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1).astype(np.float32)[None]


def interval(k, n):
    found = binomtest(k, n).proportion_ci(0.95, "exact")
    return [float(found.low), float(found.high)]


def make_rows(n, seed):
    """Rows of samples-clean and of each attack."""
    rng = np.random.default_rng(seed)
    clean, attacks = [], [[], []]
    for i in range(n):
        right, label = bool(rng.random() < 0.95), i % 10
        told = label if right else (label + 1) % 10
        said = {
            "label": label,
            "prediction": told,
            "confidence": float(rng.uniform(0.7, 1)),
            "margin": 3.0 if right else -1.0,
            "least": (label + 5) % 10,
        }
        clean.append({"id": i, "correct": right, **said})
        if not right:
            continue
        draw = rng.random()
        for k, chance in enumerate((0.25, 0.4)):
            won = bool(draw < chance) != (draw > 0.97 and k == 0)  # the second breaks what the first does, nearly
            after = {"prediction": (label + 3 + i // 10) % 10, "confidence": 0.6, "margin": -0.5} if won else {}
            attacks[k].append(
                {
                    "id": i,
                    "success": won,
                    "distance": EPS if won else 0.0,
                    "loss": float(rng.uniform(0, 3)),
                    "step": int(rng.integers(1, 40)) if won else -1,
                    "forwards": 2 + 38 * k,
                    "backwards": 1 + 39 * k,
                    "silent": False,
                    **said,
                    **after,
                }
            )
    return clean, attacks


def make_results(n, clean, attacks, gallery):
    right = {row["id"] for row in clean if row["correct"]}
    broken = [{row["id"] for row in rows if row["success"]} for rows in attacks]
    worst = {row["id"]: row for rows in reversed(attacks) for row in rows if row["success"]}
    cost = {"forwards": 100, "backwards": 50}
    return {
        "schema_version": "1.0",
        "kind": "evaluation",
        "complete": True,
        "valid": True,
        "forced": False,
        "limit": n,
        "n": n,
        "n_total": 1000,
        "clean_accuracy": len(right) / n,
        "clean_interval": interval(len(right), n),
        "robust_accuracy": (len(right) - len(worst)) / n,
        "interval": interval(len(right) - len(worst), n),
        "confidence": 0.95,
        "chance": 0.1,
        "threat": {"norm": "linf", "eps": EPS, "text": "linf:0.2", "targeted": None},
        "model": {
            "name": "demo:mnist-plain",
            "task": "classification",
            "parameters": 81434,
            "outputs": 10,
            "class_names": NAMES,
            "mean": [0.1307],
            "std": [0.3081],
            "bounds": [0.0, 1.0],
            "sha256": "a" * 64,
            "input_shape": [1, 28, 28],
            "dtype": "float32",
            "device": "cpu",
            "eot": 1,
        },
        "data": {"name": "demo:mnist", "size": 1000, "sha256": "b" * 64},
        "attacks": [
            {
                "label": LABELS[k],
                "suite": None,
                "name": LABELS[k].partition(":")[0],
                "version": 1,
                "options": {"loss": "ce", "steps": 40} if k else {},
                "paper": "https://arxiv.org/abs/1706.06083",
                "summary": "Steps of steepest ascent inside the ball.",
                "robust_accuracy": (len(right) - len(broken[k])) / n,
                "interval": interval(len(right) - len(broken[k]), n),
                "attacked": len(attacks[k]),
                "broken": len(broken[k]),
                "gain": len(broken[k] - broken[0] if k else broken[0]),
                "alone": len(broken[k] - broken[1 - k]),
                "median_distance": EPS,
                "minimum": None,
                "forwards": sum(row["forwards"] for row in attacks[k]),
                "backwards": sum(row["backwards"] for row in attacks[k]),
                "knowledge": "white-box",
                "atlas": ["AML.T0015", "AML.T0043.000"],
                "nist": ["NISTAML.022"],
            }
            for k in range(2)
        ],
        "per_class": [_per_class(c, clean, worst) for c in range(10)],
        "confusion": _confusion(clean, worst),
        "calibration": {"clean": {"confidence": 0.86, "ece": 0.1}, "adversarial": {"confidence": 0.75, "ece": 0.3}},
        "diagnostics": [dict(zip(KEYS, row, strict=True)) for row in DIAGNOSTICS],
        "curve": {
            "attack": LABELS[1],
            "chance": 0.1,
            "area": 0.12,
            "points": _points(n, len(right), len(right) - len(worst)),
        },
        "gallery": gallery,
        "ties": [],
        "cost": {
            "forwards": 500,
            "backwards": 250,
            **dict.fromkeys(("clean", "attacks", "curve", "preflight", "diagnostics"), cost),
        },
        "assessed": [
            {
                "what": "Evasion by white-box optimisation",
                "atlas": ["AML.T0015", "AML.T0043.000"],
                "nist": ["NISTAML.022"],
            }
        ],
        "not_assessed": [
            {
                "what": "Data and model poisoning",
                "atlas": ["AML.T0020"],
                "nist": ["NISTAML.024"],
                "why": "Needs the training process.",
            }
        ],
        "gates": [
            {"metric": "robust_accuracy", "threshold": 0.45, "value": (len(right) - len(worst)) / n, "passed": True},
            {"metric": "clean_accuracy", "threshold": 0.99, "value": len(right) / n, "passed": False},
        ],
        "times": {
            "started": "2026-01-02T03:04:05.678+00:00",
            "finished": "2026-01-02T03:05:05+00:00",
            "seconds": 61.5,
            "last_session_seconds": 61.5,
            "stages": {"clean": 0.5, "fgsm": 1.0, "pgd:steps=40": 60.0},
            "peak_memory_bytes": 657829888,
        },
    }


def _per_class(c, clean, worst):
    rows = [row for row in clean if row["label"] == c]
    right = [row for row in rows if row["correct"]]
    return {
        "class": c,
        "name": NAMES[c],
        "n": len(rows),
        "clean_accuracy": len(right) / len(rows),
        "robust_accuracy": sum(row["id"] not in worst for row in right) / len(rows),
    }


def _confusion(clean, worst):
    pairs = [(clean[i]["prediction"], row["prediction"]) for i, row in worst.items()]
    return sorted(
        ({"from": a, "to": b, "count": pairs.count((a, b))} for a, b in set(pairs)),
        key=lambda row: (-row["count"], row["from"], row["to"]),
    )


def _points(n, right, standing):
    radii = [0.0, 0.025, 0.05, 0.1, 0.15, EPS, 0.3, 0.4, 0.6]
    counts = [
        right - round((right - standing) * r / EPS) if r <= EPS else max(0, round(standing * (1.8 - 4 * r)))
        for r in radii
    ]
    return [
        {"eps": r, "robust_accuracy": k / n, "interval": interval(k, n)} for r, k in zip(radii, counts, strict=True)
    ]


def make_gallery(clean, attacks, rng, size):
    """Entries and tensors of the first broken samples."""
    entries, tensors = [], {}
    for row in [row for row in attacks[1] if row["success"]][:size]:
        i, label, said = row["id"], row["label"], row["prediction"]
        x = digit(label, rng)
        adversarial = np.clip(x + EPS * np.sign(rng.normal(size=x.shape)), 0, 1).astype(np.float32)
        delta = (adversarial - x).astype(np.float64)
        tops = [
            [
                {"class": c, "name": NAMES[c], "p": p}
                for c, p in zip((top, (top + 1) % 10, (top + 2) % 10), (0.7, 0.2, 0.05), strict=True)
            ]
            for top in (label, said)
        ]
        entries.append(
            {
                "id": i,
                "label": label,
                "label_name": NAMES[label],
                "attack": LABELS[1],
                "linf": float(abs(delta).max()),
                "l2": float(np.linalg.norm(delta)),
                "l0": int((delta != 0).sum()),
                "clean_top": tops[0],
                "adversarial_top": tops[1],
            }
        )
        tensors[f"original/{i}"], tensors[f"adversarial/{i}"] = x, adversarial
    return entries, tensors


def make_run(path, n=60, seed=0, **changes):
    """Write a finished run into a folder (made if missing) and return the folder.

    ``seed`` draws other verdicts on the same samples; ``changes`` replaces parts of the results at their top level.
    """
    path.mkdir(parents=True, exist_ok=True)
    clean, attacks = make_rows(n, seed)
    gallery, tensors = make_gallery(clean, attacks, np.random.default_rng(1), 6)
    save_file(tensors, path / "gallery.safetensors")
    write_json(path / "results.json", {**make_results(n, clean, attacks, gallery), **changes})
    write_json(
        path / "run.json",
        {
            "schema_version": "1.0",
            "command": [
                "robustkit",
                "evaluate",
                "demo:mnist-plain",
                "--data",
                "demo:mnist",
                "--attack",
                "fgsm",
                "--attack",
                "pgd:steps=40",
                "--threat",
                "linf:0.2",
                "--limit",
                str(n),
                "--out",
                "a run",
            ],
            "config_sha256": "c" * 64,
            "created": "2026-01-02T03:04:05.678+00:00",
            "resumed": [],
            "versions": {"python": "3.11.7", "robustkit": "0.1.0", "torch": "2.9.0"},
            "platform": "Linux-6.1",
            "device": "cpu",
            "git": {"commit": "d" * 40, "dirty": True},
            "model": {"name": "demo:mnist-plain", "sha256": "a" * 64},
            "data": {"name": "demo:mnist", "sha256": "b" * 64},
        },
    )
    (path / "config.yaml").write_text(
        f"model: demo:mnist-plain\ndata: demo:mnist\nattacks:\n- fgsm\n- pgd:steps=40\n"
        f"threat: linf:0.2\nlimit: {n}\nseed: 0\n",
        encoding="utf-8",
    )
    for name, rows in (("clean", clean), ("0-fgsm", attacks[0]), ("1-pgd-steps-40", attacks[1])):
        (path / f"samples-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


@pytest.fixture
def run_folder(tmp_path):
    """The folder of a finished run."""
    return make_run(tmp_path / "run")


@pytest.fixture
def made(tmp_path):
    """``made("b", seed=1, complete=False)``: :func:`make_run` in a folder of the test."""
    return lambda name="run", **changes: make_run(tmp_path / name, **changes)
