"""Made-up results, as far as the verbs that read them look."""

from __future__ import annotations


def attack(label, broken, gain, alone):
    return {"label": label, "name": label, "version": 1, "options": {}, "paper": "", "summary": "", "broken": broken,
            "robust_accuracy": 1 - broken / 10, "interval": [0.2, 0.9], "gain": gain, "alone": alone,
            "median_distance": 0.1, "forwards": 10, "backwards": 10, "knowledge": "white-box", "atlas": [], "nist": []}


RESULTS = {
    "schema_version": "1.0", "kind": "evaluation", "complete": True, "valid": True, "forced": False, "limit": None,
    "n": 10, "n_total": 10, "clean_accuracy": 0.9, "clean_interval": [0.55, 0.99], "robust_accuracy": 0.6,
    "interval": [0.26, 0.88], "confidence": 0.95, "chance": 0.1, "gates": [],
    "threat": {"norm": "linf", "eps": 0.2, "text": "linf:0.2", "targeted": None},
    "attacks": [attack("fgsm", 2, 2, 0), attack("pgd", 4, 2, 2)],
    "diagnostics": [{"id": "D8", "title": "iterative beats single-step", "status": "WARN", "value": 0.1,
                     "threshold": "<= 0", "message": "[odd]", "remedy": "More steps.", "invalidates": False}],
}
