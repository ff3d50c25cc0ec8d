import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from fivegate import Monitor


def load_table(mended):
    bunch = load_digits()
    table = np.column_stack([bunch.data[:, 2:62], bunch.target]).astype("float32")
    low, high = table.min(0), table.max(0)
    scaled = (table - low) / np.maximum(high - low, 1)
    if mended:
        scaled[:, -1] = table[:, -1]
    return (
        torch.from_numpy(scaled[:, :-1].copy()),
        torch.from_numpy(scaled[:, -1].copy()).long(),
        torch.from_numpy(bunch.target),
    )


def run(seed, mended):
    torch.manual_seed(seed)
    features, labels, digits = load_table(mended)
    order = torch.randperm(len(features))
    fit, held = order[:1300], order[1300:]
    net = nn.Sequential(nn.Linear(60, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss()
    monitor = Monitor(net, optimizer)
    accuracy = 0.0
    for epoch in range(15):
        net.train()
        total = hits = 0.0
        for rows in fit[torch.randperm(len(fit))].split(50):
            optimizer.zero_grad()
            logits = net(features[rows])
            loss = criterion(logits, labels[rows])
            loss.backward()
            monitor.step(loss, inputs=features[rows], targets=labels[rows])
            optimizer.step()
            total += loss.item() * len(rows)
            hits += (logits.argmax(1) == labels[rows]).sum().item()
        net.eval()
        with torch.no_grad():
            logits = net(features[held])
            accuracy = (logits.argmax(1) == digits[held]).float().mean().item()
            val_loss = criterion(logits, digits[held]).item()
        monitor.validated(
            epoch, {"train/loss": total / len(fit), "train/accuracy": hits / len(fit)}, loss=val_loss, accuracy=accuracy
        )
    return accuracy, monitor
