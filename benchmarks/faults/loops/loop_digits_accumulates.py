"""Handwritten digits; four small batches make one update."""

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
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(12):
        model.train()
        losses = []
        for rows in torch.randperm(len(y_train)).split(64):
            optimizer.zero_grad()
            parts = rows.split(16)
            for part in parts:
                outputs = model(X_train[part])
                loss = F.cross_entropy(outputs, y_train[part])
                (loss / len(parts)).backward()
                monitor.step(loss, inputs=X_train[part], targets=y_train[part], outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = F.cross_entropy(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
