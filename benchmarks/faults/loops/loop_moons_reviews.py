"""Praise and blame, told apart by which of five hundred words a review holds; twenty of them tell."""

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    draw = torch.Generator().manual_seed(0)
    y = (torch.arange(600) % 2).float()
    shares = torch.full((600, 500), 0.1)
    shares[:, :10] += 0.2 * y[:, None]
    shares[:, 10:20] += 0.2 * (1 - y)[:, None]
    X = torch.bernoulli(shares, generator=draw)
    X_train, y_train, X_val, y_val = X[:80], y[:80], X[80:], y[80:]

    torch.manual_seed(seed)
    drop = nn.Dropout(0.5) if mended else nn.Identity()
    model = nn.Sequential(nn.Linear(500, 64), nn.ReLU(), drop, nn.Linear(64, 64), nn.ReLU(), drop, nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(7 if mended else 60):
        model.train()
        losses = []
        for rows in torch.randperm(len(y_train)).split(16):
            optimizer.zero_grad()
            outputs = model(X_train[rows])[:, 0]
            loss = F.binary_cross_entropy_with_logits(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(X_val)[:, 0]
            accuracy = ((outputs > 0) == (y_val > 0)).float().mean().item()
            val_loss = F.binary_cross_entropy_with_logits(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return val_loss, monitor
