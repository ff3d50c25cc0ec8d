"""Which of three valves opened first? LSTM over twelve readings of six sensors."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


def load(seed):
    rng = np.random.default_rng(100 + seed)
    X = rng.normal(size=(1200, 12, 6)).astype("float32") * 0.5
    y = rng.integers(0, 3, size=1200)
    for i, k in enumerate(y):
        X[i, :4, k] += 1.2
        X[i, 6:10, rng.integers(0, 3)] += 1.2
    return torch.from_numpy(X), torch.from_numpy(y)


class EventClassifier(nn.Module):
    def __init__(self, n_features, hidden, n_classes, **kw):
        super().__init__()
        self.lstm = nn.LSTM(n_features, hidden, **kw)
        self.fc = nn.Linear(hidden, n_classes)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[:, -1, :])


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = load(seed)
    train_dl = DataLoader(TensorDataset(X[:900], y[:900]), batch_size=32, shuffle=True)
    val_dl = DataLoader(TensorDataset(X[900:], y[900:]), batch_size=32)
    kw = {"batch_first": True} if mended else {}
    model = EventClassifier(6, 32, 3, **kw)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, optimizer, every=25)

    for epoch in range(15):
        model.train()
        running = 0.0
        for xb, yb in train_dl:
            optimizer.zero_grad()
            loss = criterion(model(xb), yb)
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            running += loss.item() * len(xb)
        model.eval()
        correct, vloss = 0, 0.0
        with torch.no_grad():
            for xb, yb in val_dl:
                out = model(xb)
                vloss += criterion(out, yb).item() * len(xb)
                correct += (out.argmax(1) == yb).sum().item()
        acc = correct / 300
        monitor.validated(epoch, {"train/loss": running / 900}, loss=vloss / 300, accuracy=acc)
    return acc, monitor
