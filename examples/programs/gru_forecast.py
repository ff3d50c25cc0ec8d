"""A GRU forecasts the next value of a noisy oscillation from the last 24; later windows are for validation."""

import numpy as np
import torch
import torch.nn as nn

WINDOW = 24


def data():
    t = np.arange(1600)
    series = np.sin(t / 5) + 0.5 * np.sin(t / 11) + np.random.default_rng(0).normal(0, 0.1, len(t))
    X = np.stack([series[i : i + WINDOW] for i in range(len(t) - WINDOW)])
    y = series[WINDOW:]
    X = torch.tensor(X, dtype=torch.float32).unsqueeze(-1)  # [N, 24, 1]
    y = torch.tensor(y, dtype=torch.float32)
    # A gap of one window keeps each split free of values of the one before.
    cuts = [(0, 900), (900 + WINDOW, 1200), (1200 + WINDOW, len(X))]
    return {name: (X[a:b], y[a:b]) for name, (a, b) in zip(("train", "val", "test"), cuts, strict=True)}


class Forecaster(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.gru = nn.GRU(input_size=1, hidden_size=hidden, batch_first=True)
        self.linear = nn.Linear(hidden, 1)

    def forward(self, x):
        _, h = self.gru(x)
        return self.linear(h[-1])


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    X, y = splits["train"]
    model = Forecaster()
    loss_fn = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(15):
        for rows in torch.randperm(len(X)).split(64):
            prediction = model(X[rows]).squeeze()
            loss = loss_fn(prediction, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    X, y = splits["val"]
    with torch.no_grad():
        print("validation root mean squared error", loss_fn(model(X).squeeze(), y).sqrt().item())
