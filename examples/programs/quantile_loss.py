"""Quantile regression: three outputs for one target, the 10 %, 50 % and 90 % quantiles, and their pinball loss."""

import numpy as np
import torch
import torch.nn as nn

QUANTILES = torch.tensor([0.1, 0.5, 0.9])


def data():
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, (1500, 1)).astype(np.float32)
    y = (np.sin(2 * x) + rng.normal(0, 0.1 + 0.3 * np.abs(x) / 3)).astype(np.float32)
    return {"train": (x[:900], y[:900]), "val": (x[900:1200], y[900:1200]), "test": (x[1200:], y[1200:])}


class QuantileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))

    def forward(self, x):
        return self.net(x)


def quantile_loss(preds, target):
    """preds [B, 3], target [B, 1]"""
    errors = target - preds
    return torch.max((QUANTILES - 1) * errors, QUANTILES * errors).mean()


def median(outputs):
    return outputs[:, 1]


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    X, y = (torch.from_numpy(a) for a in splits["train"])
    model = QuantileNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(40):
        for idx in torch.randperm(len(X)).split(64):
            loss = quantile_loss(model(X[idx]), y[idx])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    X, y = (torch.from_numpy(a) for a in splits["val"])
    with torch.no_grad():
        out = model(X)
    print("validation mean absolute error of the median", (median(out)[:, None] - y).abs().mean().item())
    print("pinball loss", quantile_loss(out, y).item())
    print("share of targets inside the 80 % band", ((y > out[:, :1]) & (y < out[:, 2:])).float().mean().item())
