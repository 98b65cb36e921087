"""The embedded models and data by name, and the forms that other sources take. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One line of `robustkit list models`, `networks` or `data`."""

    name: str
    summary: str


DEMO_MODELS = (
    Item("demo:mnist-robust", "small conv net for digits, trained adversarially at Linf 0.2"),
    Item("demo:mnist-plain", "the same network, trained on the digits as they are"),
    Item("demo:mnist-smooth", "the same network, trained with Gaussian noise of standard deviation 0.25"),
    Item("demo:shapes-segmentation", "small conv net that labels the pixels of drawn shapes (task segmentation)"),
    Item("demo:efficientnet_lite0", "EfficientNet-Lite0 for the 1,000 ImageNet classes, mean and std 0.5"),
)
MODEL_FORMS = (
    Item("timm:NAME", "a timm network with its published weights, or with --weights FILE"),
    Item("torchvision:NAME", "a torchvision classifier with its default weights, or with --weights FILE"),
    Item("hf:ID", "a Hugging Face image classifier: an id on the hub or a local folder (needs transformers)"),
    Item(
        "path.py:factory", "whatever the function `factory` in your file returns: a module, a function, a wrapped model"
    ),
    Item("run:DIR", "the network that a training in DIR has made, with its best weights; run:DIR:last with its last"),
)
NEW_MODELS = (
    Item("cnn", "small conv net for images of any size: three strided convolutions, no batch statistics"),
    Item("resnet8", "ResNet-8 with BatchNorm, for small images such as 32x32"),
    Item("timm:NAME", "a timm network for your number of classes and channels; --init pretrained for its weights"),
    Item("torchvision:NAME", "a torchvision classifier for your number of classes; --init pretrained likewise"),
    Item("path.py:factory", "whatever the function `factory` in your file returns, as it is: also for dense tasks"),
    Item("demo:NAME, hf:ID, run:DIR", "a network that has weights already, to be trained further"),
)
DEMO_DATA = (
    Item("demo:mnist", "1,000 MNIST digits kept apart by a fixed split, 100 per class"),
    Item("demo:mnist-train", "the other 4,000 digits, which the demo networks were trained on"),
    Item("demo:shapes", "256 drawn scenes, 48x48, with one of five classes for every pixel, or none (255)"),
    Item("demo:photos", "four photographs with an ImageNet class, 224x224"),
)
DATA_FORMS = (
    Item(
        "folder:DIR",
        "pictures in one folder per class (class map: classes.txt, .json or .csv), or listed in DIR/labels.csv",
    ),
    Item("npz:FILE", "arrays x and y of a NumPy file; npz:FILE:X_test,y_test names others"),
    Item("hf:ID[:SPLIT]", "a Hugging Face data set: an id on the hub or a local folder (needs datasets)"),
    Item(
        "path.py:factory", "whatever the function `factory` in your file returns: Dataset, DataLoader, (x, y), batches"
    ),
)


def models() -> tuple[Item, ...]:
    """Embedded models, then the forms."""
    return DEMO_MODELS + MODEL_FORMS


def networks() -> tuple[Item, ...]:
    """Networks to be trained."""
    return NEW_MODELS


def data() -> tuple[Item, ...]:
    """Embedded data, then the forms."""
    return DEMO_DATA + DATA_FORMS
