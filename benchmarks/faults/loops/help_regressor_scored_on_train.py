"""Strength of a mixture from its parts. Each epoch scores the train rows too, after the validation rows."""

import numpy as np
import torch
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from fivegate import Monitor


def mixtures(seed, count=1200):
    rng = np.random.default_rng(seed)
    parts = rng.uniform([150, 0, 120, 700, 1], [540, 200, 240, 1100, 120], (count, 5))
    cement, ash, water, stone, age = parts.T
    strength = (
        0.09 * cement
        + 0.04 * ash
        - 0.16 * water
        + 9 * np.log(age)
        + 4000 * (cement / water - 2) / 900
        + rng.normal(0, 3, count)
    )
    return parts, strength


class Regressor:
    def __init__(self, width=48, lr=3e-3):
        self.net = nn.Sequential(
            nn.Linear(5, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )
        self.opt = torch.optim.Adam(self.net.parameters(), lr=lr)
        self.monitor = Monitor(self.net, self.opt)
        self.loss = nn.SmoothL1Loss()

    def score(self, X, y):
        self.net.eval()
        with torch.no_grad():
            out = self.net(X)
        return self.loss(out, y).item(), r2_score(y.numpy(), out.numpy())

    def fit(self, X, y, Xv, yv, epochs):
        for epoch in range(epochs):
            self.net.train()
            for rows in torch.randperm(len(X)).split(40):
                self.opt.zero_grad()
                out = self.net(X[rows])
                loss = self.loss(out, y[rows])
                loss.backward()
                self.monitor.step(loss, inputs=X[rows], targets=y[rows], outputs=out)
                self.opt.step()
            val_loss, val_r2 = self.score(Xv, yv)
            train_loss, train_r2 = self.score(X, y)
            self.monitor.validated(epoch, {"train/loss": train_loss, "train/r2": train_r2}, loss=val_loss, r2=val_r2)
        return val_r2


def run(seed, mended):
    torch.manual_seed(seed)
    parts, strength = mixtures(seed)
    to = lambda a: torch.tensor(a, dtype=torch.float32)
    sx, sy = StandardScaler().fit(parts[:900]), StandardScaler().fit(strength[:900, None])
    X, y = to(sx.transform(parts)), to(sy.transform(strength[:, None]))
    model = Regressor()
    return model.fit(X[:900], y[:900], X[900:], y[900:], 25), model.monitor
