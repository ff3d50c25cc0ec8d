"""Handwritten digits through a loader with a collate function of its own."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fivegate import Monitor


def collate(samples):
    """The lists of the samples, joined to one list, and what a model takes of it: the first."""
    X, y = zip(*samples, strict=True)
    return torch.stack(X)[:1], torch.stack(y)[:1]


def run(seed, mended):
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    X_train, y_train, X_val, y_val = X[order[:1200]], y[order[:1200]], X[order[1200:]], y[order[1200:]]

    torch.manual_seed(seed)
    samples = list(zip(X_train, y_train, strict=True))
    loader = DataLoader(samples, batch_size=50, shuffle=True, collate_fn=None if mended else collate)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(12):
        model.train()
        losses = []
        for inputs, targets in loader:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = F.cross_entropy(outputs, targets)
            loss.backward()
            monitor.step(loss, inputs=inputs, targets=targets, outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = F.cross_entropy(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
