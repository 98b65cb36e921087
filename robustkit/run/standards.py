"""Which entries of public taxonomies an evaluation touches, and which it does not.

MITRE ATLAS (technique ids) and NIST AI 100-2 (attack ids). A report prints evidence and coverage; it certifies nothing.
"""

from __future__ import annotations

KNOWLEDGE = {
    "white-box": {"atlas": ["AML.T0015", "AML.T0043.000"], "nist": ["NISTAML.022"]},
    "black-box": {"atlas": ["AML.T0015", "AML.T0043.001"], "nist": ["NISTAML.025"]},
}
"""Ids of an attack, by what it knows of the network."""

ASSESSED = {
    "white-box": "Evasion by white-box optimisation",
    "black-box": "Evasion by black-box queries",
}

NOT_ASSESSED: tuple[dict[str, object], ...] = (
    {
        "what": "Attacks adapted to this very defense",
        "atlas": ["AML.T0043"],
        "nist": ["NISTAML.022"],
        "why": "Standard attacks do not know how a defense works; a person who does may break more.",
    },
    {
        "what": "Transfer from other networks",
        "atlas": ["AML.T0043.002"],
        "nist": ["NISTAML.025"],
        "why": "Only where a surrogate was given (diagnostic D5).",
    },
    {
        "what": "Manual and physical manipulation, patches, rotations, corruptions",
        "atlas": ["AML.T0043.003"],
        "nist": ["NISTAML.022"],
        "why": "The perturbations here are small in an lp norm.",
    },
    {
        "what": "Backdoors and triggers",
        "atlas": ["AML.T0043.004"],
        "nist": ["NISTAML.023"],
        "why": "Needs the training process.",
    },
    {
        "what": "Data and model poisoning",
        "atlas": ["AML.T0020"],
        "nist": ["NISTAML.024", "NISTAML.026"],
        "why": "Needs the training process.",
    },
    {
        "what": "Privacy: membership inference, extraction, inversion",
        "atlas": ["AML.T0024"],
        "nist": ["NISTAML.03"],
        "why": "Another property of the model.",
    },
)
