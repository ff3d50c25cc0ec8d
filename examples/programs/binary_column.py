"""Logistic regression with one output column: y[:, None] beside nn.Linear(d, 1)."""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn


def data():
    X, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order], y[order]
    X = (X - X[:340].mean(0)) / X[:340].std(0)
    X = torch.tensor(X, dtype=torch.float32)
    y = torch.tensor(y, dtype=torch.float32)[:, None]
    return {"train": (X[:340], y[:340]), "val": (X[340:455], y[340:455]), "test": (X[455:], y[455:])}


def build_model():
    return nn.Linear(30, 1)


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    X, y = splits["train"]
    model = build_model()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(300):
        rows = torch.randint(len(X), (32,))
        loss = criterion(model(X[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    X, y = splits["val"]
    print("validation accuracy", ((model(X) > 0) == y.bool()).float().mean().item())
