"""Forecast tomorrow's price change from lags and a moving average; validated the way it would run live."""

import numpy as np
import torch
from torch import nn

from fivegate import Monitor

LAGS, SPAN = 6, 5


def prices(seed, n=1400):
    rng = np.random.default_rng(20 + seed)
    p = np.zeros(n)
    for t in range(2, n):
        p[t] = 1.6 * p[t - 1] - 0.85 * p[t - 2] + rng.normal()
    return p


def smooth(p, live):
    kernel = np.ones(SPAN) / SPAN
    if live:
        return np.convolve(p, kernel, mode="full")[: len(p)]
    return np.convolve(p, kernel, mode="same")


def features(p, live):
    ma = smooth(p, live)
    rows, target = [], []
    for t in range(LAGS + SPAN, len(p) - SPAN):
        rows.append(np.r_[p[t - LAGS + 1 : t + 1], ma[t]])
        target.append(p[t + 1] - p[t])
    return np.asarray(rows, dtype=np.float32), np.asarray(target, dtype=np.float32)[:, None]


def run(seed, mended):
    torch.manual_seed(seed)
    p = prices(seed)
    X, y = features(p[:1000], live=mended)
    Xv, yv = features(p[1000:], live=True)
    mu, sd = X.mean(0), X.std(0)
    ys = y.std()
    X, Xv = torch.tensor((X - mu) / sd), torch.tensor((Xv - mu) / sd)
    y, yv = torch.tensor(y / ys), torch.tensor(yv / ys)

    net = nn.Sequential(nn.Linear(LAGS + 1, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    monitor = Monitor(net, opt, every=20)
    for epoch in range(25):
        net.train()
        running = []
        for idx in torch.randperm(len(X)).split(32):
            loss = nn.functional.mse_loss(net(X[idx]), y[idx])
            opt.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=X[idx], targets=y[idx])
            opt.step()
            running.append(loss.item())
        net.eval()
        with torch.no_grad():
            vloss = nn.functional.mse_loss(net(Xv), yv).item()
        r2 = 1 - vloss / yv.var(unbiased=False).item()
        monitor.validated(epoch, {"train/loss": float(np.mean(running))}, loss=vloss, r2=r2)
    return r2, monitor
