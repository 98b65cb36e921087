"""From text to data: `demo:mnist`, `folder:DIR`, `npz:FILE`, `hf:ID[:SPLIT]`, `path.py:factory`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from robustkit import catalogue
from robustkit.core.errors import UsageError, near
from robustkit.core.preprocessing import Preprocessing
from robustkit.data.arrays import open_npz
from robustkit.data.folders import open_folder
from robustkit.data.hub import open_hub
from robustkit.data.loaders import as_data
from robustkit.data.samples import Data, TensorData
from robustkit.demo import shapes
from robustkit.demo.digits import CLASSES, digits
from robustkit.demo.imagenet import class_names
from robustkit.demo.photos import photos
from robustkit.userfile import call_factory, is_user_file


def open_data(spec: str, *, preprocessing: Preprocessing | None = None, limit: int | None = None) -> Data:
    """The data that `spec` names.

    Args:
        spec: one of the forms above; `robustkit list data` shows them.
        preprocessing: of the network that will see the data; its size, crop and channels decide how pictures become
            inputs. Mean and std are not applied here: they belong to the wrapped network.
        limit: how many samples to read of a source that can only be read through, such as a generator.

    Raises:
        UsageError: an unknown form or name; whatever is wrong with the file.
    """
    if is_user_file(spec):
        return as_data(call_factory(spec), limit, name=spec)
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in _FORMS or not rest:
        raise _unknown(spec)
    data = _FORMS[kind](rest, preprocessing)
    data.name = spec
    return data


def _demo(name: str, preprocessing: Preprocessing | None) -> Data:
    if name == "mnist":
        images, labels = digits("test")
    elif name == "mnist-train":
        images, labels = digits("train")
    elif name == "photos":
        return TensorData(*photos(preprocessing), classes=class_names())
    elif name == "shapes":
        return TensorData(*shapes.scenes(), classes=shapes.CLASSES)
    else:
        known = [item.name for item in catalogue.DEMO_DATA]
        raise UsageError("unknown data", got=repr(f"demo:{name}"), where="data", fix=near(f"demo:{name}", known))
    return TensorData(images[:, None], labels, classes=CLASSES)


_FORMS: dict[str, Callable[[str, Preprocessing | None], Data]] = {
    "demo": _demo,
    "folder": open_folder,
    "npz": lambda rest, preprocessing: open_npz(rest),
    "hf": open_hub,
}


def _unknown(spec: str) -> UsageError:
    forms = ", ".join(item.name for item in (*catalogue.DEMO_DATA, *catalogue.DATA_FORMS))
    if Path(spec).is_dir():
        fix = f"For a folder of pictures write folder:{spec}"
    elif spec.endswith(".npz"):
        fix = f"For a NumPy file write npz:{spec}"
    else:
        fix = near(spec, [item.name for item in catalogue.DEMO_DATA])
    return UsageError("unknown data", expected=f"one of {forms}", got=repr(spec), where="data", fix=fix)
