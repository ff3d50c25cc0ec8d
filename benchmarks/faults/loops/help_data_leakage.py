import copy

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


def load(seed):
    bunch = load_diabetes()
    x = torch.tensor(bunch.data, dtype=torch.float32)
    y = torch.tensor(bunch.target, dtype=torch.float32)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order], y[order]


def split(patients, visits, mended):
    row_of = torch.arange(patients).repeat_interleave(visits)
    if mended:
        who = torch.randperm(patients)
        chosen = torch.isin(row_of, who[: patients // 4])
        return row_of[~chosen], row_of[chosen]
    shuffled = row_of[torch.randperm(len(row_of))]
    cut = len(shuffled) // 4
    return shuffled[cut:], shuffled[:cut]


def evaluate(model, x, y):
    model.eval()
    with torch.no_grad():
        return nn.functional.mse_loss(model(x).squeeze(1), y).item()


def run(seed, mended):
    torch.manual_seed(seed)
    x, y = load(seed)
    x_test, y_test, x, y = x[:120], y[:120], x[120:], y[120:]
    train, val = split(len(x), 4, mended)
    loader = DataLoader(TensorDataset(x[train], y[train]), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, optimizer)
    best, kept = float("inf"), None
    for epoch in range(30):
        model.train()
        seen = []
        for xb, yb in loader:
            loss = nn.functional.mse_loss(model(xb).squeeze(1), yb)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=xb, targets=yb)
            optimizer.step()
            seen.append(loss.item())
        value = evaluate(model, x[val], y[val])
        if value < best:
            best, kept = value, copy.deepcopy(model.state_dict())
        logged = {"train/loss": sum(seen) / len(seen), "test/loss": evaluate(model, x_test, y_test)}
        monitor.validated(epoch, logged, loss=value)
    model.load_state_dict(kept)
    return evaluate(model, x_test, y_test), monitor
