"""Similarities of maps against scipy, scikit-image and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from skimage.feature import hog
from skimage.metrics import structural_similarity

from robustkit.core.errors import UsageError
from robustkit.explain.metrics import cosine, hog_spearman, similarity, spearman, ssim, top_k
from robustkit.explain.metrics.similarity import unit_range
from robustkit.kernels.ranks import average_ranks, descending_ranks


def pair(height: int = 20, width: int = 15, n: int = 4, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(n, height, width, generator=generator)
    b = a + torch.randn(n, height, width, generator=generator)
    return (a.round(), (3 * b).round() / 3) if ties else (a, b)


def test_ranks_equal_scipy():
    a, _ = pair(ties=True)
    rows = a.flatten(1)
    np.testing.assert_array_equal(average_ranks(rows), rankdata(rows.numpy(), axis=1) - 1)
    order = np.argsort(-rows.numpy(), axis=1, kind="stable")
    np.testing.assert_array_equal(descending_ranks(rows), np.argsort(order, axis=1))
    assert average_ranks(torch.zeros(2, 1)).tolist() == [[0], [0]]


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_equals_scipy(ties):
    a, b = pair(ties=ties)
    slow = [spearmanr(a[i].flatten(), b[i].flatten()).statistic for i in range(len(a))]
    np.testing.assert_allclose(spearman(a, b), slow, atol=1e-12)


def test_spearman_of_a_constant_map_does_not_exist():
    a, b = pair()
    a[1] = 0.1
    assert spearman(a, b).isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("size", [(20, 15), (11, 30)])
def test_ssim_equals_scikit_image(size):
    a, b = pair(*size)
    maps = [unit_range(m).numpy() for m in (a, b)]
    slow = [structural_similarity(p, q, gaussian_weights=True, data_range=1) for p, q in zip(*maps, strict=True)]
    np.testing.assert_allclose(ssim(a, b), slow, atol=1e-10)
    assert ssim(a[:, :10], b[:, :10]).isnan().all()


def test_scaling_cuts_at_the_quantile():
    a, _ = pair()
    flat = a.flatten(1).double().numpy()
    low, high = flat.min(1, keepdims=True), np.quantile(flat, 0.99, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_range(a).flatten(1), np.clip((flat - low) / (high - low), 0, 1), atol=1e-12)
    assert not unit_range(torch.full((1, 3, 3), 5.0)).any()
    spike = torch.zeros(1, 20, 20)
    spike[0, 3, 4] = 2  # all but one value equal: the quantile is the minimum, and the spike remains
    assert unit_range(spike).sum() == 1


def test_hog_equals_its_parts():
    a, b = pair(48, 64, 2)
    found = [
        spearmanr(*(hog(unit_range(m)[i].numpy(), pixels_per_cell=(16, 16)) for m in (a, b))).statistic
        for i in range(2)
    ]
    np.testing.assert_allclose(hog_spearman(a, b), found, atol=1e-12)
    assert hog_spearman(a[:, :40], b[:, :40]).isnan().all()


def test_top_k_counts_shared_pixels():
    a = torch.tensor([[[9.0, 8, 7, 6], [0, 0, 0, 0]]])
    b = torch.tensor([[[9.0, 0, 7, 0], [1, 1, 1, 1]]])
    assert top_k(a, b, 0.5).tolist() == [0.5]  # tops {0, 1, 2, 3} and {0, 2, 4, 5}
    assert top_k(a, b, 1e-6).tolist() == [1]  # at least one pixel
    assert top_k(a, b, 1).tolist() == [1]
    x, y = torch.rand(64, 40, 40), torch.rand(64, 40, 40)
    assert float(top_k(x, y).mean()) == pytest.approx(0.1, abs=0.02)  # unrelated maps share k


def test_cosine_equals_its_formula_and_survives_tiny_maps():
    a, b = pair()
    slow = (a * b).flatten(1).sum(1) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))
    torch.testing.assert_close(cosine(a, b).float(), slow)
    torch.testing.assert_close(cosine(1e-30 * a, b).float(), slow, atol=1e-5, rtol=0)
    a[2] = 0
    assert cosine(a, b).isnan().tolist() == [False, False, True, False]


def test_bad_input_says_what_is_wrong():
    a, b = pair()
    for k in (0, -0.1, 1.5, True, float("nan")):
        with pytest.raises(UsageError, match="top share holds pixels"):
            top_k(a, b, k)
    with pytest.raises(UsageError, match=r"different sizes.*\(4, 20, 15\).*\(4, 20, 14\)"):
        similarity(a, b[:, :, :14])
    with pytest.raises(UsageError, match="pixel by pixel"):
        cosine(a[None], b[None])
    b[3, 0, 0] = torch.inf
    for measure in (spearman, cosine, ssim, top_k, hog_spearman):
        with pytest.raises(UsageError, match=r"not finite.*row 3"):
            measure(a, b)
