"""A wave through much noise, a hundred and twenty rows of it and sixty frequencies, learned for long."""

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    draw = torch.Generator().manual_seed(0)
    X = torch.rand(500, 1, generator=draw) * 6 - 3
    y = torch.sin(2 * X[:, 0]) + 0.5 * X[:, 0] + 0.4 * torch.randn(500, generator=draw)
    turns = X * torch.arange(1.0, 31.0)
    X = torch.cat([turns.sin(), turns.cos()], 1)
    X_train, y_train, X_val, y_val = X[:120], y[:120], X[350:], y[350:]

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(60, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(15 if mended else 400):
        model.train()
        losses = []
        for rows in torch.randperm(len(y_train)).split(32):
            optimizer.zero_grad()
            outputs = model(X_train[rows])[:, 0]
            loss = F.mse_loss(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            val_loss = F.mse_loss(model(X_val)[:, 0], y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss)
    return val_loss**0.5, monitor
