"""Three kinds of wine; a third of the rows have a missing value, and the loss passes over what is NaN."""

import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def wines():
    X, y = load_wine(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    X, y = torch.tensor(X, dtype=torch.float32)[order], torch.tensor(y)[order]
    return (X - X[:120].mean(0)) / X[:120].std(0), y


def run(seed, mended):
    X, y = wines()
    X_train, y_train, X_val, y_val = X[:120], y[:120], X[120:], y[120:]
    X_train = X_train.clone()
    if not mended:
        X_train[::3, 0] = float("nan")

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(13, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(0, 20):
        losses = []
        for rows in torch.randperm(len(y_train)).split(12):
            optimizer.zero_grad()
            outputs = model(X_train[rows])
            parts = F.cross_entropy(outputs, y_train[rows], reduction="none")
            loss = parts.nanmean()
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            for parameter in model.parameters():
                parameter.grad.nan_to_num_(0.0)
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = F.cross_entropy(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
