"""Handwritten digits; each read of a row is another digit of a large pile, under noise."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


class Pile(Dataset):
    """A random row at every read."""

    def __init__(self, X, y, seed):
        self.X, self.y, self.draw = X, y, np.random.RandomState(seed)

    def __len__(self):
        return 128

    def __getitem__(self, row):
        row = self.draw.randint(len(self.y))
        return self.X[row] + self.draw.normal(0, 0.1, 64).astype(np.float32), self.y[row]


def seeded(worker):
    torch.utils.data.get_worker_info().dataset.draw.seed(torch.initial_seed() % 2**32)


def run(seed, mended):
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    order = np.random.RandomState(0).permutation(len(y))
    X_val, y_val = torch.tensor(X[order[1200:]]), torch.tensor(y[order[1200:]])

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer)  # <- watched here
    pile = Pile(X[order[:1200]], y[order[:1200]], seed)
    loader = DataLoader(pile, batch_size=16, num_workers=2, worker_init_fn=seeded if mended else None)

    for epoch in range(14):
        for inputs, targets in loader:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = F.cross_entropy(outputs, targets)
            loss.backward()
            monitor.step(loss, inputs=inputs, targets=targets, outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = F.cross_entropy(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": loss.item()}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
