"""Four photographs of scikit-image that show an ImageNet class, 224x224.

The labels say what the photographs show by WordNet's definitions, not what some network answers. Chelsea is a striped
ginger cat: class 282, "a cat having a striped coat" (not a Mau, 285; networks waver between 281, 282 and 285). The
Falcon 9 on its pad is labelled with the nearest class there is, 657 "missile", a rocket with a warhead: lenient, and
said so. Of what the camera man shows, only the tripod has a class. The other pictures in the wheel have none (the
astronaut, the textures; the motorcycle is neither a moped nor a scooter).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustkit.core.preprocessing import Preprocessing
from robustkit.demo.packages import package_file
from robustkit.images import read_image, to_array

STANDARD = Preprocessing(
    (0.5,) * 3, (0.5,) * 3, size=(224, 224), crop_pct=0.875, interpolation="bicubic", source="demo"
)


@dataclass(frozen=True)
class Photo:
    """A picture of the package and its class."""

    file: str
    label: int
    origin: str


PHOTOS = (
    Photo("chelsea.png", 282, "Stefan van der Walt, CC0"),
    Photo("coffee.png", 967, "Rachel Michetti, CC0"),
    Photo("rocket.jpg", 657, "SpaceX, public domain"),
    Photo("camera.png", 872, "Lav Varshney, CC0"),
)


def photos(preprocessing: Preprocessing | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pictures (4, 3, H, W) as uint8 and their labels; 224x224 from a short side of 256 unless a size is given."""
    chosen = preprocessing if preprocessing is not None and preprocessing.size is not None else STANDARD
    paths = [package_file("skimage", f"data/{photo.file}") for photo in PHOTOS]
    arrays = [to_array(read_image(path), "RGB", chosen, str(path)) for path in paths]
    return np.stack(arrays), np.array([photo.label for photo in PHOTOS], dtype=np.int64)
