"""The game of life: a board's next state from this one, cell by cell, by a small convolutional net."""

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def next_state(board):
    neighbours = sum(board.roll((dx, dy), (2, 3)) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy)
    return ((neighbours == 3) | ((board > 0) & (neighbours == 2))).float()


def run(seed, mended):
    X = (torch.rand(750, 1, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    y = next_state(X)
    X = F.pad(X, (1, 1, 1, 1), mode="circular")
    X_train, y_train, X_val, y_val = X[:600], y[:600], X[600:], y[600:]

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 1, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01 if mended else 0.001)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(15 if mended else 5):
        model.train()
        losses = []
        for rows in torch.randperm(len(y_train)).split(32):
            optimizer.zero_grad()
            outputs = model(X_train[rows])
            loss = F.binary_cross_entropy_with_logits(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = ((outputs > 0) == (y_val > 0)).float().mean().item()
            val_loss = F.binary_cross_entropy_with_logits(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
