"""robustkit: evaluate, train, certify and explain PyTorch models, with numbers that can be trusted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from robustkit.attacks.apgd import APGD
    from robustkit.attacks.art_adapter import from_art
    from robustkit.attacks.cospgd import CosPGD
    from robustkit.attacks.cw import CW
    from robustkit.attacks.ddn import DDN
    from robustkit.attacks.deepfool import DeepFool
    from robustkit.attacks.fab import FAB
    from robustkit.attacks.fgsm import FGSM
    from robustkit.attacks.fmn import FMN
    from robustkit.attacks.foolbox_adapter import from_foolbox
    from robustkit.attacks.pgd import PGD
    from robustkit.attacks.segpgd import SegPGD
    from robustkit.attacks.square import Square
    from robustkit.attacks.suite import Plus, Rand, Standard
    from robustkit.core.attack import ATTACKS, Attack, AttackResult
    from robustkit.core.attribution import Attribution
    from robustkit.core.diagnostic import Diagnostic
    from robustkit.core.errors import RobustkitError
    from robustkit.core.explainer import EXPLAINERS, Explainer
    from robustkit.core.model import Model, wrap
    from robustkit.core.task import Classification, DenseClassification, Regression
    from robustkit.core.threat import L1, L2, Linf, Threat
    from robustkit.data import open_data
    from robustkit.explain.captum_adapter import from_captum
    from robustkit.explain.gradcam import GradCAM
    from robustkit.explain.gradient import Gradient, InputTimesGradient
    from robustkit.explain.integrated import IntegratedGradients
    from robustkit.explain.moreaugrad import MoreauGrad
    from robustkit.explain.smoothgrad import SmoothGrad
    from robustkit.explain.xrai import XRAI
    from robustkit.run.evaluate import evaluate
    from robustkit.run.explain import explain
    from robustkit.run.explain_result import Explanations
    from robustkit.run.result import Result
    from robustkit.run.verify import verify
    from robustkit.zoo import load

_HOMES = {
    "APGD": "attacks.apgd",
    "ATTACKS": "core.attack",
    "Attack": "core.attack",
    "AttackResult": "core.attack",
    "Attribution": "core.attribution",
    "CW": "attacks.cw",
    "Classification": "core.task",
    "CosPGD": "attacks.cospgd",
    "DDN": "attacks.ddn",
    "DeepFool": "attacks.deepfool",
    "DenseClassification": "core.task",
    "Diagnostic": "core.diagnostic",
    "EXPLAINERS": "core.explainer",
    "Explainer": "core.explainer",
    "Explanations": "run.explain_result",
    "FAB": "attacks.fab",
    "FGSM": "attacks.fgsm",
    "FMN": "attacks.fmn",
    "GradCAM": "explain.gradcam",
    "Gradient": "explain.gradient",
    "InputTimesGradient": "explain.gradient",
    "IntegratedGradients": "explain.integrated",
    "L1": "core.threat",
    "L2": "core.threat",
    "Linf": "core.threat",
    "Model": "core.model",
    "MoreauGrad": "explain.moreaugrad",
    "PGD": "attacks.pgd",
    "Plus": "attacks.suite",
    "Rand": "attacks.suite",
    "Regression": "core.task",
    "Result": "run.result",
    "RobustkitError": "core.errors",
    "SegPGD": "attacks.segpgd",
    "SmoothGrad": "explain.smoothgrad",
    "Square": "attacks.square",
    "Standard": "attacks.suite",
    "Threat": "core.threat",
    "XRAI": "explain.xrai",
    "evaluate": "run.evaluate",
    "from_art": "attacks.art_adapter",
    "from_captum": "explain.captum_adapter",
    "from_foolbox": "attacks.foolbox_adapter",
    "load": "zoo",
    "open_data": "data",
    "verify": "run.verify",
    "wrap": "core.model",
}

_CALLABLE = ("explain",)
"""Families that are functions, too: the package itself is the public name (docs/adr/0008-callable-packages.md)."""

__all__ = [
    "APGD",
    "ATTACKS",
    "CW",
    "DDN",
    "EXPLAINERS",
    "FAB",
    "FGSM",
    "FMN",
    "L1",
    "L2",
    "PGD",
    "XRAI",
    "Attack",
    "AttackResult",
    "Attribution",
    "Classification",
    "CosPGD",
    "DeepFool",
    "DenseClassification",
    "Diagnostic",
    "Explainer",
    "Explanations",
    "GradCAM",
    "Gradient",
    "InputTimesGradient",
    "IntegratedGradients",
    "Linf",
    "Model",
    "MoreauGrad",
    "Plus",
    "Rand",
    "Regression",
    "Result",
    "RobustkitError",
    "SegPGD",
    "SmoothGrad",
    "Square",
    "Standard",
    "Threat",
    "evaluate",
    "explain",
    "from_art",
    "from_captum",
    "from_foolbox",
    "load",
    "open_data",
    "verify",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import robustkit`` costs nothing."""
    if name in _CALLABLE:
        return import_module(f"robustkit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'robustkit' has no attribute {name!r}")
    value = getattr(import_module(f"robustkit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
