"""The public names: a change here is a change for users, and belongs in the CHANGELOG."""

from __future__ import annotations

import inspect
import subprocess
import sys

import robustkit as rk

NAMES = """
    AMP APGD ATTACKS AWP Attack AttackResult Attribution CERTIFIERS CW Certificate Certification Certifier
    Classification Concurrent CosPGD DDN DEFENSES DRS DeepFool Defense DenseClassification Diagnostic DualSmoothing
    ERM EXPLAINERS Explainer Explanations FAB FGSM FGSMRS FMN Free GradCAM Gradient InputTimesGradient
    IntegratedGradients L1 L2 Linf MART Model MoreauGrad Noise PGD PGDAT Plus RAT Rand Regression Result
    RobustkitError SegPGD SmoothGrad Smoothing SplitModel Square Standard TRADES Threat TrainState Training XRAI
    certify evaluate explain from_art from_captum from_foolbox load open_data train verify wrap
"""


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_public_names():
    assert sorted(rk.__all__) == sorted(NAMES.split())
    for name in NAMES.split():
        assert inspect.getdoc(getattr(rk, name)) or name in ("ATTACKS", "CERTIFIERS", "EXPLAINERS")


def test_public_signatures():
    assert parameters(rk.wrap) == [
        "net",
        "mean",
        "std",
        "bounds",
        "task",
        "preprocessing",
        "chunk",
        "eot",
        "name",
        "class_names",
    ]
    assert parameters(rk.evaluate) == [
        "model",
        "data",
        "attacks",
        "threat",
        "limit",
        "seed",
        "batch_size",
        "out",
        "targeted",
        "curve",
        "force",
        "fail_under",
        "max_minutes",
        "surrogate",
        "progress",
    ]
    assert parameters(rk.certify) == [
        "model",
        "data",
        "method",
        "falsify",
        "limit",
        "seed",
        "batch_size",
        "force",
        "out",
        "progress",
    ]
    assert parameters(rk.explain) == [
        "model",
        "data",
        "methods",
        "target",
        "output",
        "mask",
        "limit",
        "seed",
        "batch_size",
        "evaluate",
        "significant",
        "out",
        "progress",
    ]
    assert parameters(rk.PGD) == ["threat", "loss", "steps", "step_size", "restarts", "random_start"]
    assert parameters(rk.Attack.__call__) == ["self", "model", "x", "y", "target", "ids", "seed", "start", "ranking"]


def test_import_is_light():
    code = "import robustkit, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
