"""Handwritten digits; a net that was trained before is taken up again, and learns a little more."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def net():
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def trained_before(X, y):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()
    return model.state_dict()


def run(seed, mended):
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    X, y, X_val, y_val = X[order[:1200]], y[order[:1200]], X[order[1200:]], y[order[1200:]]
    torch.manual_seed(seed)
    checkpoint = trained_before(X, y)
    X_train, y_train = X[:200], y[:200]  # what is new

    model = net()
    model.load_state_dict(checkpoint)
    if not mended:
        for layer in (model[0], model[2]):
            layer.reset_parameters()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(5):
        for rows in torch.randperm(len(y_train)).split(20):
            optimizer.zero_grad()
            outputs = model(X_train[rows])
            loss = F.cross_entropy(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = F.cross_entropy(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": loss.item()}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
