"""Forecast of a river level with its uncertainty, by the Gaussian likelihood."""

import numpy as np
import torch
from torch import nn

from fivegate import Monitor


def river(n, seed):
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    calm = 0.02 + 0.04 * (np.sin(2 * np.pi * t / 50) > 0)
    return (np.sin(2 * np.pi * t / 25) * 0.6 + 0.2 * np.sin(2 * np.pi * t / 50) + rng.normal(size=n) * calm).astype(
        "float32"
    )


class Forecaster(nn.Module):
    def __init__(self, window=25):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(window, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.mean, self.log_var = nn.Linear(64, 1), nn.Linear(64, 1)

    def forward(self, x):
        h = self.trunk(x)
        return self.mean(h), self.log_var(h).clamp(-9, 4)


def nll(mean, log_var, y):
    return 0.5 * (log_var + (y - mean) ** 2 * torch.exp(-log_var)).mean()


def run(seed, mended):
    torch.manual_seed(seed)
    s = torch.from_numpy(river(1800, seed))
    X = s.unfold(0, 25, 1)[:-1]
    y = s[25:, None]
    Xt, yt, Xv, yv = X[:1400], y[:1400], X[1400:], y[1400:]
    model = Forecaster()
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, opt, every=25)
    for epoch in range(25):
        model.train()
        tot = 0.0
        for idx in torch.randperm(len(Xt)).split(50):
            mean, log_var = model(Xt[idx])
            loss = nll(mean, log_var, yt[idx])
            opt.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=Xt[idx], targets=yt[idx])
            opt.step()
            tot += loss.item() * len(idx) / len(Xt)
        model.eval()
        with torch.no_grad():
            mean, log_var = model(Xv)
            vl = nll(mean, log_var, yv).item()
            mae = (mean - yv).abs().mean().item()
        monitor.validated(epoch, {"train/loss": tot}, loss=vl, mae=mae)
    return mae, monitor
