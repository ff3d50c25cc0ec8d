"""Will a customer leave? Five measured features, and the shop where the contract was made."""

import numpy as np
import torch
from torch import nn

from fivegate import Monitor


def customers(rng, count=2000, shops=1300):
    X = rng.normal(size=(count, 5))
    shop = rng.integers(0, shops, count)
    score = 1.8 * X[:, 0] - 1.4 * X[:, 1] * (X[:, 2] > 0) + 1.0 * X[:, 3]
    y = (score + rng.normal(0, 0.5, count) > 0).astype(int)
    return X, shop, y


def shop_rates(shop, y, unseen):
    rates = {s: y[shop == s].mean() for s in np.unique(shop)}
    return lambda wanted: np.array([rates.get(s, unseen) for s in wanted])


def encode(shop, y, folds, rng):
    if folds == 1:
        return shop_rates(shop, y, y.mean())(shop)
    column = np.zeros(len(y))
    fold = rng.integers(0, folds, len(y))
    for k in range(folds):
        rest = fold != k
        column[~rest] = shop_rates(shop[rest], y[rest], y.mean())(shop[~rest])
    return column


def run(seed, mended):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    X, shop, y = customers(rng)
    train, val = slice(0, 1500), slice(1500, None)
    column_t = encode(shop[train], y[train], 5 if mended else 1, rng)
    column_v = shop_rates(shop[train], y[train], y[train].mean())(shop[val])
    table = lambda part, column: torch.tensor(np.column_stack([X[part], 2 * column - 1]), dtype=torch.float32)
    Xt, Xv = table(train, column_t), table(val, column_v)
    yt, yv = torch.tensor(y[train]), torch.tensor(y[val])
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    criterion = nn.CrossEntropyLoss()
    monitor = Monitor(model, optimizer)
    for epoch in range(20):
        model.train()
        total = hits = 0.0
        for rows in torch.randperm(1500).split(50):
            out = model(Xt[rows])
            loss = criterion(out, yt[rows])
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=Xt[rows], targets=yt[rows], outputs=out)
            optimizer.step()
            total += loss.item() * len(rows)
            hits += (out.argmax(1) == yt[rows]).sum().item()
        model.eval()
        with torch.no_grad():
            out = model(Xv)
        accuracy = (out.argmax(1) == yv).float().mean().item()
        monitor.validated(
            epoch,
            {"train/loss": total / 1500, "train/accuracy": hits / 1500},
            loss=criterion(out, yv).item(),
            accuracy=accuracy,
        )
    return accuracy, monitor
