"""One short training on CIFAR-10-JPEG, from pictures to the page: ``python -m benchmarks.cifar_jpeg FOLDER``.

FOLDER (or ROBUSTKIT_DATA) holds ``cifar10/train_jpeg.zip`` and ``cifar10/test_jpeg.zip``: CIFAR-10 after a lossy
compression. A ResNet-8 sees 5,000 of its pictures for a few epochs, one seed, nothing tuned. It shows that the way from
a folder of pictures to a judged network works. Its figures are not those of CIFAR-10 and of no published network.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

TRAIN, TEST = 500, 100
"""Pictures of each class."""
COMMAND = (
    "train folder:{data}/train --test folder:{data}/test --model resnet8 --defense {defense} --threat linf:8/255 "
    "--epochs {epochs} --augment crop-flip --select-every 2 --eval standard --eval-limit 500 --out {out}"
)


def unpack(archive: Path, folder: Path, count: int) -> None:
    """The first pictures of every class, into a folder for each; those that are there stay."""
    with zipfile.ZipFile(archive) as found:
        for name in found.namelist():
            label, _, file = name.partition("/")
            if file.endswith(".jpg") and int(Path(file).stem) < count and not (folder / label / file).is_file():
                (folder / label).mkdir(parents=True, exist_ok=True)
                (folder / label / file).write_bytes(found.read(name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Unpack the pictures and give the command, which goes on where it was cut."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cifar_jpeg", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=os.environ.get("ROBUSTKIT_DATA"))
    parser.add_argument("--defense", default="pgd-at:steps=5")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar-jpeg"))
    given = parser.parse_args(arguments)
    if given.folder is None:
        parser.error("give FOLDER or set ROBUSTKIT_DATA")
    data = Path("runs/cifar-jpeg-pictures")
    for name, count in (("train", TRAIN), ("test", TEST)):
        unpack(Path(given.folder) / "cifar10" / f"{name}_jpeg.zip", data / name, count)
    command = COMMAND.format(data=data, defense=given.defense, epochs=given.epochs, out=given.out)
    print(f"robustkit {command}")
    raise SystemExit(subprocess.run([sys.executable, "-m", "robustkit", *command.split()], check=False).returncode)


if __name__ == "__main__":
    main()
