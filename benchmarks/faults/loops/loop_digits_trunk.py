"""Handwritten digits; a second head, for odd and even, is put on a trunk that the first goes on using."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    X_train, y_train, X_val, y_val = X[order[:1200]], y[order[:1200]], X[order[1200:]], y[order[1200:]]
    torch.manual_seed(seed)
    trunk, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 10)
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(head(trunk(X_train)), y_train).backward()
        optimizer.step()

    if mended:
        trunk.requires_grad_(False)
    odd = y_train % 2
    model = nn.Sequential(trunk, nn.Linear(64, 2))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.06)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(20):
        for rows in torch.randperm(len(y_train)).split(64):
            optimizer.zero_grad()
            outputs = model(X_train[rows])
            loss = F.cross_entropy(outputs, odd[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=odd[rows], outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(X_val).argmax(1) == y_val % 2).float().mean().item()
            val_loss = F.cross_entropy(model(X_val), y_val % 2).item()
            first = (head(trunk(X_val)).argmax(1) == y_val).float().mean().item()
        earlier = {"train/loss": loss.item(), "val/accuracy_digits": first}
        monitor.validated(epoch, earlier, loss=val_loss, accuracy=accuracy)
    return min(first, accuracy), monitor
