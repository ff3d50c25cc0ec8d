"""Predict the ozone reading of a station from weather; the validation rows were checked by hand."""

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


def station(n, rng):
    temperature, wind, sun = rng.normal(18, 6, n), rng.gamma(2.0, 2.0, n), rng.uniform(0, 1, n)
    humidity, hour = rng.uniform(20, 95, n), rng.integers(0, 24, n)
    ozone = 40 + 1.5 * temperature * sun - 2.0 * wind - 0.15 * humidity + 8 * np.sin(hour / 24 * 2 * np.pi)
    X = np.c_[temperature, wind, sun, humidity, np.sin(hour / 24 * 2 * np.pi), np.cos(hour / 24 * 2 * np.pi)]
    return X, ozone + rng.normal(0, 2.5, n)


def run(seed, mended):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    X, y = station(1500, rng)
    Xv, yv = station(400, rng)
    faulty = rng.random(len(y)) < 0.015
    y[faulty] = 9999.0
    if mended:
        X, y = X[y < 1000], y[y < 1000]
    sx, sy = StandardScaler().fit(X), StandardScaler().fit(y[:, None])
    tensor = lambda a: torch.tensor(a, dtype=torch.float32)
    train = TensorDataset(tensor(sx.transform(X)), tensor(sy.transform(y[:, None])))
    Xv, yv_scaled = tensor(sx.transform(Xv)), tensor(sy.transform(yv[:, None]))

    model = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    criterion = nn.MSELoss()
    monitor = Monitor(model, optimizer, every=20)
    for epoch in range(15):
        model.train()
        batch_losses = []
        for xb, yb in DataLoader(train, batch_size=32, shuffle=True):
            out = model(xb)
            loss = criterion(out, yb)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=xb, targets=yb, outputs=out)
            optimizer.step()
            batch_losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            out = model(Xv)
            val_loss = criterion(out, yv_scaled).item()
            mae = float(np.abs(sy.inverse_transform(out.numpy())[:, 0] - yv).mean())
        monitor.validated(epoch, {"train/loss": float(np.mean(batch_losses))}, loss=val_loss, mae=mae)
    return mae, monitor
