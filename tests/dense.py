"""Small networks with one answer per pixel, and data for them."""

import torch
from torch import nn

from robustkit.core.model import wrap
from robustkit.core.task import DenseClassification, Regression


class PixelNet(nn.Module):
    """Two convolutions with what a careless attack disturbs between them: (N, 3, H, W) to (N, C, H, W)."""

    def __init__(self, channels=5, dtype=torch.float64, scale=1.0):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Conv2d(8, channels, 3, padding=1),
        )
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * (0.5 * scale if p.ndim > 1 else 0.1))
            self.body[1].running_var.fill_(1.3)
        self.to(dtype).eval()

    def forward(self, x):
        return self.body(x)


def images(n=5, size=8, dtype=torch.float64):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def segmentation(classes=5, dtype=torch.float64, n=5, fraction=0.5, void=True):
    """Model, x and labels that the network mostly agrees with; a tenth is wrong and a corner has no label."""
    model, x = wrap(PixelNet(classes, dtype), task=DenseClassification(fraction=fraction)), images(n, dtype=dtype)
    y = model(x).argmax(1).detach()
    wrong = torch.rand(y.shape, generator=torch.Generator().manual_seed(2)) < 0.1
    y = torch.where(wrong, (y + 1) % classes, y)
    if void:
        y[:, :2, :3] = 255
    return model, x, y


def regression(channels, dtype=torch.float64, n=5, tolerance=0.3):
    """Model, x and targets a little beside what the network says."""
    model, x = wrap(PixelNet(channels, dtype), task=Regression(tolerance=tolerance)), images(n, dtype=dtype)
    noise = torch.randn(n, channels, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return model, x, model(x).detach() + 0.05 * noise.to(dtype)
