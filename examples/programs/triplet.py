"""Metric learning: embeddings of digits with a triplet loss, measured by the class of the nearest neighbour."""

import numpy as np
import torch
import torch.nn as nn
from sklearn.datasets import load_digits


def data():
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order], y[order]
    return {"train": (X[:1000], y[:1000]), "val": (X[1000:1400], y[1000:1400]), "test": (X[1400:], y[1400:])}


class EmbeddingNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x):
        return nn.functional.normalize(self.fc(x), dim=1)


class BatchHardTripletLoss(nn.Module):
    def __init__(self, margin=0.3):
        super().__init__()
        self.margin = margin

    def forward(self, embeddings, labels):
        distances = torch.cdist(embeddings, embeddings)
        same = labels[:, None] == labels[None, :]
        hardest_positive = distances.masked_fill(~same, 0).max(dim=1).values
        hardest_negative = distances.masked_fill(same, 10).min(dim=1).values
        return torch.relu(hardest_positive - hardest_negative + self.margin).mean()


class RecallAtOne:
    """The share of rows whose nearest neighbour among the other rows has the same label."""

    greater_is_better = True

    def __call__(self, labels, embeddings):
        similarity = embeddings @ embeddings.T
        np.fill_diagonal(similarity, -np.inf)
        return float((labels[similarity.argmax(1)] == labels).mean())


triplet_loss = BatchHardTripletLoss()


def step(model, batch):
    x, y = batch
    embeddings = model(x)
    return {"loss": triplet_loss(embeddings, y), "outputs": embeddings}


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    X, y = map(torch.from_numpy, splits["train"])
    model = EmbeddingNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(20):
        for rows in torch.randperm(len(X)).split(100):
            optimizer.zero_grad()
            triplet_loss(model(X[rows]), y[rows]).backward()
            optimizer.step()
    X, y = splits["val"]
    with torch.no_grad():
        print("validation recall@1", RecallAtOne()(y, model(torch.from_numpy(X)).numpy()))
