"""Three kinds of wine; the first layer was trained before, should stay as it is, and fades by weight decay."""

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


def net():
    return nn.Sequential(nn.Linear(13, 24), nn.ReLU(), nn.Linear(24, 3))


def trained_before(X, y):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()
    return model, optimizer


def run(seed, mended):
    X, y = wines()
    X_train, y_train, X_val, y_val = X[:120], y[:120], X[120:], y[120:]

    torch.manual_seed(seed)
    model, _ = trained_before(X_train, y_train)
    model[2].reset_parameters()
    model[0].requires_grad_(False)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    parameters = model[2].parameters() if mended else model.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.0 if mended else 0.5)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(0, 20):
        losses = []
        for rows in torch.randperm(len(y_train)).split(12):
            optimizer.zero_grad(set_to_none=False)
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
