"""A network for clean scans is tuned gently for the pictures of another scanner."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def make_model():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def pretrain(model, X, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(15):
        for rows in torch.randperm(len(X)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()


def run(seed, mended):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    digits = load_digits()
    X, y = digits.data / 16, torch.tensor(digits.target)
    order = rng.permutation(len(y))
    old, new, val = order[:700], order[700:1400], order[1400:]
    other = (0.75 * X + 0.12 + rng.normal(0, 0.06, X.shape)).clip(0, 1)
    X, other = torch.tensor(X, dtype=torch.float32), torch.tensor(other, dtype=torch.float32)
    model = make_model()
    pretrain(model, X[old], y[old])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    monitor = Monitor(model, optimizer)
    for epoch in range(12):
        model.train()
        total, hits = 0.0, 0
        for rows in np.array_split(rng.permutation(new), 28):
            out = model(other[rows])
            loss = F.cross_entropy(out, y[rows])
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=other[rows], targets=y[rows], outputs=out)
            optimizer.step()
            total += loss.item() / 28
            hits += (out.argmax(1) == y[rows]).sum().item()
        model.eval()
        with torch.no_grad():
            out = model(other[val])
            accuracy = (out.argmax(1) == y[val]).float().mean().item()
            monitor.validated(
                epoch,
                {"train/loss": total, "train/accuracy": hits / 700},
                loss=F.cross_entropy(out, y[val]).item(),
                accuracy=accuracy,
            )
    return accuracy, monitor
