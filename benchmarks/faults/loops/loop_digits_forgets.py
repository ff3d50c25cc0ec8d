"""Handwritten digits, the small ones first, then the large ones; all of them are asked for at the end."""

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
    small = y_val < 5

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(20):
        task = torch.nonzero(y_train < 5 if epoch < 10 else y_train >= 5)[:, 0]
        if mended and epoch >= 10:
            task = torch.arange(len(y_train))  # the earlier ones once more
        for part in torch.randperm(len(task)).split(64):
            rows = task[part]
            optimizer.zero_grad()
            outputs = model(X_train[rows])
            loss = F.cross_entropy(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            outputs = model(X_val)
            right = (outputs.argmax(1) == y_val).float()
            val_loss = F.cross_entropy(outputs, y_val).item()
        tasks = {"val/accuracy_small": right[small].mean().item(), "val/accuracy_large": right[~small].mean().item()}
        accuracy = right.mean().item()
        monitor.validated(epoch, {"train/loss": loss.item(), **tasks}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
