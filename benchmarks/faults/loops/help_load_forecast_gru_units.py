"""Next hour's electric load of a building (kWh) from the last day."""

import numpy as np
import torch
from sklearn.metrics import r2_score
from torch import nn

from fivegate import Monitor


def make_series(seed, hours=1500):
    rng = np.random.default_rng(seed)
    t = np.arange(hours)
    drift = np.zeros(hours)
    for i in range(1, hours):
        drift[i] = 0.9 * drift[i - 1] + rng.normal(0, 1.1)
    return 36 + 9 * np.sin(2 * np.pi * t / 24) + 3.5 * np.sin(2 * np.pi * t / 12 + 1) + drift


class Forecaster(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.gru = nn.GRU(1, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.out(self.gru(x)[0][:, -1]).squeeze(1)


def run(seed, mended):
    torch.manual_seed(seed)
    series = make_series(seed)
    mean, std = series[:1100].mean(), series[:1100].std()
    scaled = (series - mean) / std
    wanted = scaled if mended else series
    X = torch.tensor(np.stack([scaled[i : i + 24] for i in range(len(series) - 24)]), dtype=torch.float32)[..., None]
    y = torch.tensor(wanted[24:], dtype=torch.float32)
    Xt, yt, Xv, yv = X[:1076], y[:1076], X[1100:], y[1100:]
    net = Forecaster()
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    mse = nn.MSELoss()
    monitor = Monitor(net, opt)
    for epoch in range(20):
        net.train()
        losses = []
        for idx in torch.randperm(len(Xt)).split(64):
            pred = net(Xt[idx])
            loss = mse(pred, yt[idx])
            opt.zero_grad()
            loss.backward()
            monitor.step(loss, targets=yt[idx])
            opt.step()
            losses.append(loss.item())
        net.eval()
        with torch.no_grad():
            pred = net(Xv)
        r2 = r2_score(yv.numpy(), pred.numpy())
        monitor.validated(epoch, {"train/loss": float(np.mean(losses))}, loss=mse(pred, yv).item(), r2=r2)
    return r2, monitor
