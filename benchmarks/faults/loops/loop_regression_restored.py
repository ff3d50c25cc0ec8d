"""A wave that a net knows, moved a little: a few steps from the stored weights should do."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    draw = torch.Generator().manual_seed(0)
    X = torch.rand(500, 1, generator=draw) * 6 - 3
    y = torch.sin(2 * X[:, 0]) + 0.1 * torch.randn(500, generator=draw)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    earlier = copy.deepcopy(model)
    optimizer = torch.optim.Adam(earlier.parameters(), lr=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        F.mse_loss(earlier(X)[:, 0], y).backward()
        optimizer.step()
    checkpoint = earlier.state_dict()

    y = y + 0.3
    X_train, y_train, X_val, y_val = X[:100], y[:100], X[100:], y[100:]
    if mended:
        model.load_state_dict(checkpoint)
    else:
        copy.deepcopy(model).load_state_dict(checkpoint)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(6):
        for rows in torch.randperm(len(y_train)).split(20):
            optimizer.zero_grad()
            outputs = model(X_train[rows])[:, 0]
            loss = F.mse_loss(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            val_loss = F.mse_loss(model(X_val)[:, 0], y_val).item()
        monitor.validated(epoch, {"train/loss": loss.item()}, loss=val_loss)
    return val_loss**0.5, monitor
