"""Two inputs in a dict: an image and a row of a table."""

import numpy as np
import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset


class Parcels(Dataset):
    """A digit and three numbers; the label is whether the digit is above the limit that the numbers add up to."""

    def __init__(self, rows):
        X, y = load_digits(return_X_y=True)
        self.images = (X[rows] / 16).reshape(-1, 1, 8, 8).astype(np.float32)
        self.table = np.random.default_rng(0).uniform(0, 3, (len(X), 3)).astype(np.float32)[rows]
        self.labels = (y[rows] > self.table.sum(1)).astype(np.float32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"image": self.images[i], "table": self.table[i]}, self.labels[i]


def data():
    order = np.random.default_rng(1).permutation(1797)
    return {"train": Parcels(order[:1100]), "val": Parcels(order[1100:1450]), "test": Parcels(order[1450:])}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.image_fc = nn.Linear(256, 16)
        self.table_fc = nn.Linear(3, 16)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, batch):
        image = self.image_fc(self.cnn(batch["image"]))
        table = self.table_fc(batch["table"])
        return self.head(torch.cat([image, table], dim=1)).squeeze(1)


if __name__ == "__main__":
    torch.manual_seed(0)
    sets = data()
    model = TwoInputs()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(15):
        for batch, label in DataLoader(sets["train"], batch_size=32, shuffle=True):
            loss = criterion(model(batch), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        hits = [(model(batch) > 0) == (label > 0.5) for batch, label in DataLoader(sets["val"], batch_size=100)]
    print("validation accuracy", torch.cat(hits).float().mean().item())
