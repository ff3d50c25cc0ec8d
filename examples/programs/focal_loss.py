"""Rare positives, found with a focal loss; the model squeezes its output to [B]."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import make_classification


def data():
    X, y = make_classification(
        2000, 12, n_informative=5, n_redundant=2, weights=[0.9], class_sep=1.2, flip_y=0.01, random_state=3
    )
    X, y = X.astype(np.float32), y.astype(np.float32)
    return {"train": (X[:1200], y[:1200]), "val": (X[1200:1600], y[1200:1600]), "test": (X[1600:], y[1600:])}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x):
        return self.layers(x).squeeze(-1)


class FocalLoss(nn.Module):
    def __init__(self, alpha=0.75, gamma=2.0):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, logits, targets):
        bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        p_t = torch.exp(-bce)
        alpha_t = self.alpha * targets + (1 - self.alpha) * (1 - targets)
        return (alpha_t * (1 - p_t) ** self.gamma * bce).mean()


if __name__ == "__main__":
    from sklearn.metrics import average_precision_score

    torch.manual_seed(0)
    splits = data()
    X, y = map(torch.from_numpy, splits["train"])
    model, criterion = Net(), FocalLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(20):
        for rows in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            criterion(model(X[rows]), y[rows]).backward()
            optimizer.step()
    X, y = splits["val"]
    with torch.no_grad():
        scores = torch.sigmoid(model(torch.from_numpy(X)))
    print("validation average precision", average_precision_score(y, scores))
