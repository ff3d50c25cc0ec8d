"""Three rings; a few rows have a missing value, which is filled with the mean before the training."""

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def rings():
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (900,), generator=draw)
    angle = 6.2832 * torch.rand(900, generator=draw)
    radius = 0.5 + y + 0.18 * torch.randn(900, generator=draw)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


def run(seed, mended):
    X, y = rings()
    X_train, y_train, X_val, y_val = X[:600], y[:600], X[600:], y[600:]
    X_train = X_train.clone()
    X_train[::20, 0] = X_train[:, 0].mean()

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(0, 30):
        losses = []
        for rows in torch.randperm(len(y_train)).split(32):
            optimizer.zero_grad()
            outputs = model(X_train[rows])
            loss = F.cross_entropy(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = F.cross_entropy(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
