"""Segmentation: a small U-Net gives each pixel one of three classes."""

import numpy as np
import torch
import torch.nn as nn


def data():
    """Images of 16 x 16 with noise, a bright square (class 1) and a dark disc (class 2)."""
    rng = np.random.default_rng(0)
    n = 400
    yy, xx = np.mgrid[:16, :16]
    images, masks = np.zeros((n, 1, 16, 16), np.float32), np.zeros((n, 16, 16), np.int64)
    for image, mask in zip(images, masks, strict=True):
        top, left, size = rng.integers(0, 10), rng.integers(0, 10), rng.integers(3, 7)
        mask[top : top + size, left : left + size] = 1
        row, column, radius = rng.integers(3, 13), rng.integers(3, 13), rng.integers(2, 4)
        mask[(yy - row) ** 2 + (xx - column) ** 2 <= radius**2] = 2
        image[0] = (mask == 1) * 1.0 - (mask == 2) * 1.0 + rng.normal(0, 0.5, (16, 16))
    return {
        "train": (images[:240], masks[:240]),
        "val": (images[240:320], masks[240:320]),
        "test": (images[320:], masks[320:]),
    }


class DoubleConv(nn.Sequential):
    def __init__(self, c_in, c_out):
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, n_classes=3, width=8):
        super().__init__()
        self.down1 = DoubleConv(1, width)
        self.down2 = DoubleConv(width, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.conv = DoubleConv(2 * width, width)
        self.outc = nn.Conv2d(width, n_classes, 1)

    def forward(self, x):
        x1 = self.down1(x)
        x2 = self.down2(self.pool(x1))
        x = self.conv(torch.cat([x1, self.up(x2)], dim=1))
        return self.outc(x)


def mean_iou(logits, masks):
    predicted = logits.argmax(1)
    ious = []
    for c in range(3):
        intersection = ((predicted == c) & (masks == c)).sum()
        union = ((predicted == c) | (masks == c)).sum()
        ious.append((intersection + 1e-6) / (union + 1e-6))
    return torch.stack(ious).mean()


def step(model, batch):
    images, masks = batch
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, masks)
    return {"loss": loss, "mean_iou": mean_iou(logits, masks)}


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = {name: tuple(map(torch.from_numpy, pair)) for name, pair in data().items()}
    images, masks = splits["train"]
    model = UNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(10):
        model.train()
        for rows in torch.randperm(len(images)).split(16):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[rows]), masks[rows])
            loss.backward()
            optimizer.step()
    model.eval()
    images, masks = splits["val"]
    with torch.no_grad():
        print("validation mean IoU", mean_iou(model(images), masks).item())
