"""Forecast the demand of the next hour from the last 24 hours."""

import numpy as np
import torch
import torch.nn as nn

from fivegate import Monitor

WINDOW = 24


def demand(seed, hours=1500):
    rng = np.random.default_rng(seed)
    t = np.arange(hours)
    load = 50 + 20 * np.sin(2 * np.pi * t / 24) + 6 * np.sin(2 * np.pi * t / 12 + 1) + 5 * ((t // 24) % 7 < 5)
    return (load + rng.normal(0, 3, hours)).astype(np.float32)


class DemandGRU(nn.Module):
    def __init__(self, hidden_size=24):
        super().__init__()
        self.gru = nn.GRU(1, hidden_size, batch_first=True)
        self.linear = nn.Linear(hidden_size, 1)

    def forward(self, x):
        _, h = self.gru(x)
        return self.linear(h[-1])


def run(seed, mended):
    torch.manual_seed(seed)
    series = demand(seed)
    n_train = 1200
    series = (series - series[:n_train].mean()) / series[:n_train].std()
    X = np.stack([series[i : i + WINDOW] for i in range(len(series) - WINDOW)])[..., None]
    y = series[WINDOW:]
    X, y = torch.tensor(X), torch.tensor(y)
    X_train, y_train, X_val, y_val = X[:n_train], y[:n_train], X[n_train:], y[n_train:]

    model = DemandGRU()
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    monitor = Monitor(model, optimizer, every=20)
    r2 = 0.0
    for epoch in range(12):
        model.train()
        losses = []
        for idx in torch.randperm(n_train).split(40):
            prediction = model(X_train[idx])
            if mended:
                prediction = prediction.squeeze(1)
            loss = criterion(prediction, y_train[idx])
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=X_train[idx], targets=y_train[idx], outputs=prediction)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            p = model(X_val).flatten()
            mse = ((p - y_val) ** 2).mean().item()
            r2 = 1 - mse / y_val.var(unbiased=False).item()
        monitor.validated(epoch, {"train/loss": float(np.mean(losses))}, loss=mse, r2=r2)
    return r2, monitor
