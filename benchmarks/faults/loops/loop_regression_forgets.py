"""A wave whose left half is measured first and its right half later."""

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    draw = torch.Generator().manual_seed(0)
    X = torch.rand(500, 1, generator=draw) * 6 - 3
    y = torch.sin(2 * X[:, 0]) + 0.5 * X[:, 0] + 0.1 * torch.randn(500, generator=draw)
    X_train, y_train, X_val, y_val = X[:350], y[:350], X[350:], y[350:]
    left = torch.nonzero(X_train[:, 0] < 0)[:, 0]
    right = torch.nonzero(X_train[:, 0] >= 0)[:, 0]

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(90):
        task = left if epoch < 40 else right
        if mended and epoch >= 40:
            task = torch.cat([left, right])
        for part in torch.randperm(len(task)).split(32):
            rows = task[part]
            optimizer.zero_grad()
            outputs = model(X_train[rows])[:, 0]
            loss = F.mse_loss(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            errors = (model(X_val)[:, 0] - y_val) ** 2
        past, new = errors[X_val[:, 0] < 0].mean().item(), errors[X_val[:, 0] >= 0].mean().item()
        val_loss = errors.mean().item()
        halves = {"val/loss_left": past, "val/loss_right": new}
        monitor.validated(epoch, {"train/loss": loss.item(), **halves}, loss=val_loss)
    return val_loss**0.5, monitor
