"""A wave through noise; gradients are cleared once per epoch."""

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    draw = torch.Generator().manual_seed(0)
    X = torch.rand(500, 1, generator=draw) * 6 - 3
    y = torch.sin(2 * X[:, 0]) + 0.5 * X[:, 0] + 0.1 * torch.randn(500, generator=draw)
    X_train, y_train, X_val, y_val = X[:350], y[:350], X[350:], y[350:]

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(40):
        model.train()
        losses = []
        optimizer.zero_grad()
        for rows in torch.randperm(len(y_train)).split(32):
            if mended:
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
