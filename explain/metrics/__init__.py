"""Is a map any good: insertion and deletion, randomisation, max-sensitivity, similarity, each beside controls.

Nothing here is a saliency method; methods lie one floor up, one file each.
"""

from robustkit.explain.metrics.controls import CONTROLS, controls
from robustkit.explain.metrics.insertion import Curves, insertion_deletion
from robustkit.explain.metrics.judge import Judgement, evaluate_maps, overview
from robustkit.explain.metrics.randomisation import Randomisation, randomise
from robustkit.explain.metrics.sensitivity import Sensitivity, max_sensitivity
from robustkit.explain.metrics.similarity import cosine, hog_spearman, similarity, spearman, ssim, top_k

__all__ = [
    "CONTROLS",
    "Curves",
    "Judgement",
    "Randomisation",
    "Sensitivity",
    "controls",
    "cosine",
    "evaluate_maps",
    "hog_spearman",
    "insertion_deletion",
    "max_sensitivity",
    "overview",
    "randomise",
    "similarity",
    "spearman",
    "ssim",
    "top_k",
]
