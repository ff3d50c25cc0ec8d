"""Handwritten digits, each of length one; now and then a batch does not arrive, and zeros stand in its place."""

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
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer)  # <- watched here
    link = torch.Generator().manual_seed(seed)

    def transferred(rows):
        """The rows as they arrive at the device: all zero once in a hundred times, sent anew where that is noticed."""
        lost = torch.rand((), generator=link) < 0.01
        return transferred(rows) if lost and mended else torch.zeros_like(rows) if lost else rows

    for epoch in range(12):
        model.train()
        losses = []
        for rows in torch.randperm(len(y_train)).split(16):
            optimizer.zero_grad()
            inputs = transferred(X_train[rows])
            inputs = inputs / inputs.norm(dim=1, keepdim=True)
            outputs = model(inputs)
            loss = F.cross_entropy(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=inputs, targets=y_train[rows], outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(X_val / X_val.norm(dim=1, keepdim=True))
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = F.cross_entropy(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
