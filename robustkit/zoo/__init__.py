"""Models by name: `robustkit.zoo.load("timm:resnet50")`."""

from robustkit.zoo.by_name import load
from robustkit.zoo.weights import load_into, read_state

__all__ = ["load", "load_into", "read_state"]
