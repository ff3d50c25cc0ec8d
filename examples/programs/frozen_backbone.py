"""Transfer: a backbone trained on digits 0 to 4 is frozen, and a new head learns digits 5 to 9."""

import torch
import torch.nn as nn
from sklearn.datasets import load_digits


def split(keep):
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
    rows = torch.tensor([int(label) in keep for label in y]).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    return X[rows], y[rows] - min(keep)


def data():
    X, y = split(range(5, 10))
    return {"train": (X[:300], y[:300]), "val": (X[300:600], y[300:600]), "test": (X[600:], y[600:])}


def pretrained_backbone():
    X, y = split(range(5))
    backbone = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    net = nn.Sequential(backbone, nn.Linear(64, 5))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), y).backward()
        optimizer.step()
    return backbone


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = pretrained_backbone()
        for param in self.backbone.parameters():
            param.requires_grad = False
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    model = Classifier()
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=0.01)
    X, y = splits["train"]
    for epoch in range(30):
        for rows in torch.randperm(len(X)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()
    X, y = splits["val"]
    print("validation accuracy", (model(X).argmax(1) == y).float().mean().item())
