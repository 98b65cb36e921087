"""Names of the 1,000 ImageNet classes, in the order of the networks' outputs, from the lists that timm carries."""

from __future__ import annotations

from functools import cache

from robustkit.demo.packages import package_file


@cache
def wnids() -> tuple[str, ...]:
    """The WordNet identifiers, such as n01440764, by class index."""
    return tuple(package_file("timm", "data/_info/imagenet_synsets.txt").read_text(encoding="utf-8").split())


@cache
def class_names() -> tuple[str, ...]:
    """A readable name by class index: the first lemma, with its wnid where two classes share it (crane, maillot)."""
    text = package_file("timm", "data/_info/imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    lemmas = dict(line.split("\t", 1) for line in text.splitlines() if line)
    first = [lemmas.get(wnid, wnid).split(",")[0].strip() for wnid in wnids()]
    return tuple(
        f"{name} ({wnid})" if first.count(name) > 1 else name for name, wnid in zip(first, wnids(), strict=True)
    )
