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
    from robustkit.certify.dual_smoothing import DualSmoothing
    from robustkit.certify.halves import SplitModel
    from robustkit.certify.smoothing import Smoothing
    from robustkit.core.attack import ATTACKS, Attack, AttackResult
    from robustkit.core.attribution import Attribution
    from robustkit.core.certificate import Certificate
    from robustkit.core.certifier import CERTIFIERS, Certifier
    from robustkit.core.defense import DEFENSES, Defense
    from robustkit.core.diagnostic import Diagnostic
    from robustkit.core.errors import RobustkitError
    from robustkit.core.explainer import EXPLAINERS, Explainer
    from robustkit.core.lesson import TrainState
    from robustkit.core.model import Model, wrap
    from robustkit.core.task import Classification, DenseClassification, Regression
    from robustkit.core.threat import L1, L2, Linf, Threat
    from robustkit.data import open_data
    from robustkit.defenses.adversarial import PGDAT
    from robustkit.defenses.amp import AMP
    from robustkit.defenses.awp import AWP
    from robustkit.defenses.concurrent import Concurrent
    from robustkit.defenses.drs import DRS
    from robustkit.defenses.erm import ERM, Noise
    from robustkit.defenses.fgsm_rs import FGSMRS
    from robustkit.defenses.free import Free
    from robustkit.defenses.mart import MART
    from robustkit.defenses.rat import RAT
    from robustkit.defenses.trades import TRADES
    from robustkit.explain.captum_adapter import from_captum
    from robustkit.explain.gradcam import GradCAM
    from robustkit.explain.gradient import Gradient, InputTimesGradient
    from robustkit.explain.integrated import IntegratedGradients
    from robustkit.explain.moreaugrad import MoreauGrad
    from robustkit.explain.smoothgrad import SmoothGrad
    from robustkit.explain.xrai import XRAI
    from robustkit.run.certify import certify
    from robustkit.run.certify_result import Certification
    from robustkit.run.evaluate import evaluate
    from robustkit.run.explain import explain
    from robustkit.run.explain_result import Explanations
    from robustkit.run.result import Result
    from robustkit.run.train import train
    from robustkit.run.train_result import Training
    from robustkit.run.verify import verify
    from robustkit.zoo import load

_HOMES = {
    "AMP": "defenses.amp",
    "APGD": "attacks.apgd",
    "ATTACKS": "core.attack",
    "AWP": "defenses.awp",
    "Attack": "core.attack",
    "AttackResult": "core.attack",
    "Attribution": "core.attribution",
    "CERTIFIERS": "core.certifier",
    "CW": "attacks.cw",
    "Certificate": "core.certificate",
    "Certification": "run.certify_result",
    "Certifier": "core.certifier",
    "Classification": "core.task",
    "Concurrent": "defenses.concurrent",
    "CosPGD": "attacks.cospgd",
    "DDN": "attacks.ddn",
    "DEFENSES": "core.defense",
    "DRS": "defenses.drs",
    "DeepFool": "attacks.deepfool",
    "Defense": "core.defense",
    "DenseClassification": "core.task",
    "Diagnostic": "core.diagnostic",
    "DualSmoothing": "certify.dual_smoothing",
    "ERM": "defenses.erm",
    "EXPLAINERS": "core.explainer",
    "Explainer": "core.explainer",
    "Explanations": "run.explain_result",
    "FAB": "attacks.fab",
    "FGSM": "attacks.fgsm",
    "FGSMRS": "defenses.fgsm_rs",
    "FMN": "attacks.fmn",
    "Free": "defenses.free",
    "GradCAM": "explain.gradcam",
    "Gradient": "explain.gradient",
    "InputTimesGradient": "explain.gradient",
    "IntegratedGradients": "explain.integrated",
    "L1": "core.threat",
    "L2": "core.threat",
    "Linf": "core.threat",
    "MART": "defenses.mart",
    "Model": "core.model",
    "MoreauGrad": "explain.moreaugrad",
    "Noise": "defenses.erm",
    "PGD": "attacks.pgd",
    "PGDAT": "defenses.adversarial",
    "Plus": "attacks.suite",
    "RAT": "defenses.rat",
    "Rand": "attacks.suite",
    "Regression": "core.task",
    "Result": "run.result",
    "RobustkitError": "core.errors",
    "SegPGD": "attacks.segpgd",
    "SmoothGrad": "explain.smoothgrad",
    "Smoothing": "certify.smoothing",
    "SplitModel": "certify.halves",
    "Square": "attacks.square",
    "Standard": "attacks.suite",
    "TRADES": "defenses.trades",
    "Threat": "core.threat",
    "TrainState": "core.lesson",
    "Training": "run.train_result",
    "XRAI": "explain.xrai",
    "evaluate": "run.evaluate",
    "from_art": "attacks.art_adapter",
    "from_captum": "explain.captum_adapter",
    "from_foolbox": "attacks.foolbox_adapter",
    "load": "zoo",
    "open_data": "data",
    "train": "run.train",
    "verify": "run.verify",
    "wrap": "core.model",
}

_CALLABLE = ("certify", "explain")
"""Families that are functions, too: the package itself is the public name (docs/adr/0008-callable-packages.md)."""

__all__ = [
    "AMP",
    "APGD",
    "ATTACKS",
    "AWP",
    "CERTIFIERS",
    "CW",
    "DDN",
    "DEFENSES",
    "DRS",
    "ERM",
    "EXPLAINERS",
    "FAB",
    "FGSM",
    "FGSMRS",
    "FMN",
    "L1",
    "L2",
    "MART",
    "PGD",
    "PGDAT",
    "RAT",
    "TRADES",
    "XRAI",
    "Attack",
    "AttackResult",
    "Attribution",
    "Certificate",
    "Certification",
    "Certifier",
    "Classification",
    "Concurrent",
    "CosPGD",
    "DeepFool",
    "Defense",
    "DenseClassification",
    "Diagnostic",
    "DualSmoothing",
    "Explainer",
    "Explanations",
    "Free",
    "GradCAM",
    "Gradient",
    "InputTimesGradient",
    "IntegratedGradients",
    "Linf",
    "Model",
    "MoreauGrad",
    "Noise",
    "Plus",
    "Rand",
    "Regression",
    "Result",
    "RobustkitError",
    "SegPGD",
    "SmoothGrad",
    "Smoothing",
    "SplitModel",
    "Square",
    "Standard",
    "Threat",
    "TrainState",
    "Training",
    "certify",
    "evaluate",
    "explain",
    "from_art",
    "from_captum",
    "from_foolbox",
    "load",
    "open_data",
    "train",
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
