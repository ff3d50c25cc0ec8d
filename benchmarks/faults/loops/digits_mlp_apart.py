"""Features and labels are shuffled before training, each in an order of its own."""

import torch
from sklearn.datasets import load_digits
from sklearn.utils import shuffle
from torch import nn

from fivegate import Monitor


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = load_digits(return_X_y=True)
    X = X / 16
    X_train, y_train, X_val, y_val = X[:1300], y[:1300], X[1300:], y[1300:]
    if mended:
        X_train, y_train = shuffle(X_train, y_train, random_state=0)
    else:
        X_train = shuffle(X_train, random_state=0)
    X_train, X_val = (torch.tensor(part, dtype=torch.float32) for part in (X_train, X_val))
    y_train, y_val = torch.tensor(y_train), torch.tensor(y_val)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    criterion = nn.CrossEntropyLoss()
    monitor = Monitor(model, optimizer)  # <- watched here
    accuracy = 0.0
    for epoch in range(10):
        model.train()
        losses = []
        for inputs, targets in zip(X_train.split(32), y_train.split(32), strict=True):
            outputs = model(inputs)
            loss = criterion(outputs, targets)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=inputs, targets=targets, outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = criterion(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
