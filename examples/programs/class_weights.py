"""Three classes, two of them rare: CrossEntropyLoss with weights from the counts of the train rows."""

import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.metrics import balanced_accuracy_score
from torch import nn


def data():
    X, y = make_classification(
        2500,
        10,
        n_informative=6,
        n_classes=3,
        n_clusters_per_class=1,
        weights=[0.86, 0.09],
        class_sep=1.3,
        random_state=2,
    )
    X = X.astype(np.float32)
    return {"train": (X[:1500], y[:1500]), "val": (X[1500:2000], y[1500:2000]), "test": (X[2000:], y[2000:])}


def weighted_loss():
    _, y = data()["train"]
    counts = np.bincount(y)
    weights = torch.tensor(len(y) / (len(counts) * counts), dtype=torch.float)
    return nn.CrossEntropyLoss(weight=weights)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(10, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 3))

    def forward(self, x):
        return self.model(x)


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    X, y = map(torch.from_numpy, splits["train"])
    model, criterion = Classifier(), weighted_loss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for epoch in range(20):
        model.train()
        for rows in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            criterion(model(X[rows]), y[rows]).backward()
            optimizer.step()
    model.eval()
    X, y = splits["val"]
    print("validation balanced accuracy", balanced_accuracy_score(y, model(torch.from_numpy(X)).argmax(1)))
