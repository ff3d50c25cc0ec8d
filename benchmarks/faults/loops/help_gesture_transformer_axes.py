"""Four gestures in windows of a motion sensor, told apart by a small transformer."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor

STEPS, CHANNELS, EPOCHS = 24, 3, 10


def windows(count, rng):
    t = np.linspace(0, 1, STEPS)
    shapes = np.stack([t, 1 - t, np.exp(-((t - 0.4) ** 2) / 0.02), (t > 0.7) * 1.0])
    y = rng.integers(0, 4, count)
    gain = rng.uniform(0.6, 1.6, (count, 1, CHANNELS))
    offset = rng.normal(0, 0.4, (count, 1, CHANNELS))
    x = shapes[y][:, :, None] * gain + offset + rng.normal(0, 0.25, (count, STEPS, CHANNELS))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


class GestureNet(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.project = nn.Linear(CHANNELS, 32)
        self.position = nn.Parameter(torch.randn(1, STEPS, 32) * 0.1)
        options = {"batch_first": True} if batch_first else {}
        layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, dropout=0.0, **options)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        h = self.encoder(self.project(x) + self.position)
        return self.head(h[:, -1])


def run(seed, mended):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x, y = windows(640, rng)
    xv, yv = windows(300, rng)
    model = GestureNet(batch_first=mended)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(EPOCHS):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(40):
            optimizer.zero_grad()
            out = model(x[rows])
            loss = F.cross_entropy(out, y[rows])
            loss.backward()
            monitor.step(loss, inputs=x[rows], targets=y[rows], outputs=out)
            optimizer.step()
            total += loss.item() * len(rows)
        model.eval()
        with torch.no_grad():
            out = model(xv)
            accuracy = (out.argmax(1) == yv).float().mean().item()
            monitor.validated(
                epoch, {"train/loss": total / len(x)}, loss=F.cross_entropy(out, yv).item(), accuracy=accuracy
            )
    return accuracy, monitor
