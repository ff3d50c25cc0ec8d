"""Several tags per row: five outputs with BCEWithLogitsLoss."""

import torch
from sklearn.datasets import make_multilabel_classification
from sklearn.metrics import f1_score
from torch import nn, optim


def data():
    X, y = make_multilabel_classification(1500, 20, n_classes=5, n_labels=2, random_state=1)
    X = torch.tensor(X / X.max(), dtype=torch.float)
    y = torch.tensor(y, dtype=torch.float)
    return {"train": (X[:900], y[:900]), "val": (X[900:1200], y[900:1200]), "test": (X[1200:], y[1200:])}


class TagClassifier(nn.Module):
    def __init__(self, n_features=20, n_tags=5):
        super().__init__()
        self.hidden = nn.Linear(n_features, 64)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Linear(64, n_tags)

    def forward(self, x):
        return self.out(self.dropout(torch.relu(self.hidden(x))))


def train():
    torch.manual_seed(0)
    splits = data()
    X, y = splits["train"]
    model = TagClassifier()
    loss_fn = nn.BCEWithLogitsLoss()
    optimizer = optim.AdamW(model.parameters(), lr=5e-3)
    for epoch in range(30):
        model.train()
        for rows in torch.randperm(len(X)).split(32):
            loss = loss_fn(model(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    X, y = splits["val"]
    print("validation macro F1", f1_score(y, (model(X) > 0).float(), average="macro"))


if __name__ == "__main__":
    train()
