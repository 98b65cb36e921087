"""Integrated gradients: the gradient averaged on the way from a baseline to the input, times that way.

Sundararajan, Taly and Yan, https://arxiv.org/abs/1703.01365. ``IG = (x - b) * integral of the gradient at
b + a (x - b)`` over a in [0, 1]. Signed. The values add up to ``f(x) - f(b)`` up to the error of the quadrature, which
is returned as the residual. Shapes: x and map (N, *S). Units: of the output. Cost: ``steps`` forwards and backwards for
each baseline, and one forward for each baseline.
"""

from __future__ import annotations

from robustkit.core.explainer import EXPLAINERS, Map, Subject
from robustkit.core.options import method
from robustkit.explain.paths import PathMethod


@EXPLAINERS.register("integrated", paper="https://arxiv.org/abs/1703.01365")
@method
class IntegratedGradients(PathMethod):
    """Integrated gradients: shares of the output's rise from a baseline, with what they miss of it.

    ``reference``, in Python only, takes the place of ``baseline``: a tensor that broadcasts to x, or several; the map
    is the mean over them.

    >>> IntegratedGradients(baseline="black+white", steps=20).rule
    'gauss-legendre'
    """

    def attribute(self, subject: Subject) -> Map:
        return self.integrated(subject)
