"""A table with category columns, each with an embedding of its own, and numeric columns."""

import numpy as np
import torch
import torch.nn as nn

CARDINALITIES = [12, 7, 4]  # shop, weekday, kind of article


def data():
    rng = np.random.default_rng(0)
    n = 2000
    categories = np.column_stack([rng.integers(0, c, n) for c in CARDINALITIES])
    numbers = rng.normal(size=(n, 3))
    effects = [rng.normal(size=c) for c in CARDINALITIES]
    y = sum(effect[column] for effect, column in zip(effects, categories.T, strict=True))
    y = y + 0.5 * numbers[:, 0] - numbers[:, 1] * (categories[:, 2] == 1) + rng.normal(0, 0.2, n)
    tables = {"cat": torch.tensor(categories), "num": torch.tensor(numbers, dtype=torch.float32)}
    y = torch.tensor(y, dtype=torch.float32)
    cut = {"train": slice(0, 1200), "val": slice(1200, 1600), "test": slice(1600, n)}
    return {name: ({key: table[rows] for key, table in tables.items()}, y[rows]) for name, rows in cut.items()}


class TabularModel(nn.Module):
    def __init__(self, cardinalities=CARDINALITIES, n_numbers=3):
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(c, min(50, (c + 1) // 2)) for c in cardinalities])
        width = sum(e.embedding_dim for e in self.embeddings) + n_numbers
        self.bn = nn.BatchNorm1d(n_numbers)
        self.layers = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1))

    def forward(self, row):
        x = [emb(row["cat"][:, i]) for i, emb in enumerate(self.embeddings)]
        return self.layers(torch.cat([*x, self.bn(row["num"])], dim=1))


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    X, y = splits["train"]
    model = TabularModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(25):
        model.train()
        for rows in torch.randperm(len(y)).split(64):
            prediction = model({key: table[rows] for key, table in X.items()})
            loss = nn.functional.mse_loss(prediction, y[rows].unsqueeze(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    X, y = splits["val"]
    print("validation root mean squared error", nn.functional.mse_loss(model(X).squeeze(1), y).sqrt().item())
