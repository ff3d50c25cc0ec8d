"""Two regression targets, a price and a rent, in dollars: values of hundreds of thousands and of thousands."""

import numpy as np
import torch
import torch.nn as nn


def data():
    rng = np.random.default_rng(0)
    n = 1500
    area = rng.uniform(30, 200, n)
    rooms = np.clip(area // 25 + rng.integers(-1, 2, n), 1, 8)
    age = rng.uniform(0, 80, n)
    distance = rng.exponential(5, n)
    price = 3000 * area + 12_000 * rooms - 900 * age - 6000 * distance + 60_000 + 15_000 * rng.standard_t(2, n)
    rent = 11 * area + 90 * rooms - 3 * age - 25 * distance + 400 + 60 * rng.standard_t(3, n)
    X = np.column_stack([area / 100, rooms / 4, age / 40, distance / 5]).astype("float32")
    y = np.column_stack([price, rent]).astype("float32")
    return {"train": (X[:900], y[:900]), "val": (X[900:1200], y[900:1200]), "test": (X[1200:], y[1200:])}


def make_model():
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = {name: tuple(map(torch.from_numpy, pair)) for name, pair in data().items()}
    X, y = splits["train"]
    model = make_model()
    loss_fn = nn.HuberLoss(delta=1000.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(60):
        for rows in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            loss_fn(model(X[rows]), y[rows]).backward()
            optimizer.step()
    X, y = splits["val"]
    print("validation mean absolute error", (model(X) - y).abs().mean().item())
