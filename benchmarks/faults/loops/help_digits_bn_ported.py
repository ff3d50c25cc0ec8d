"""A network for digits."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fivegate import Monitor


def block(inputs, outputs, momentum):
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, momentum=momentum), nn.ReLU()]


def build(momentum):
    return nn.Sequential(*block(64, 64, momentum), *block(64, 32, momentum), nn.Linear(32, 10))


def evaluate(model, loader, criterion):
    model.eval()
    loss = hits = n = 0
    with torch.no_grad():
        for x, y in loader:
            z = model(x)
            loss, hits, n = loss + criterion(z, y).item() * len(y), hits + (z.argmax(1) == y).sum().item(), n + len(y)
    return loss / n, hits / n


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor((X - 4.9) / 6.0, dtype=torch.float32), torch.tensor(y))
    train, val = random_split(data, [1347, 450])
    loader = DataLoader(train, batch_size=64, shuffle=True)
    val_loader = DataLoader(val, batch_size=150)
    model = build(momentum=0.1 if mended else 0.9)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    monitor = Monitor(model, optimizer)
    for epoch in range(20):
        model.train()
        total = hits = 0
        for xb, yb in loader:
            optimizer.zero_grad()
            out = model(xb)
            loss = criterion(out, yb)
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            total += loss.item() * len(yb)
            hits += (out.argmax(1) == yb).sum().item()
        val_loss, accuracy = evaluate(model, val_loader, criterion)
        monitor.validated(
            epoch, {"train/loss": total / 1347, "train/accuracy": hits / 1347}, loss=val_loss, accuracy=accuracy
        )
    return accuracy, monitor
