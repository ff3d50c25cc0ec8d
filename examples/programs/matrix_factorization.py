"""A recommender: ratings as the product of a user's and an item's factors; X are pairs of ids."""

import numpy as np
import torch
import torch.nn as nn

USERS, ITEMS = 60, 40


def data():
    rng = np.random.default_rng(0)
    user_factors, item_factors = rng.normal(size=(USERS, 3)), rng.normal(size=(ITEMS, 3))
    pairs = np.stack(np.meshgrid(np.arange(USERS), np.arange(ITEMS)), axis=-1).reshape(-1, 2)
    pairs = rng.permutation(pairs)
    ratings = 3 + (user_factors[pairs[:, 0]] * item_factors[pairs[:, 1]]).sum(1) + rng.normal(0, 0.2, len(pairs))
    ratings = ratings.astype(np.float32)
    cut = {"train": slice(0, 1700), "val": slice(1700, 2050), "test": slice(2050, None)}
    return {name: (pairs[rows], ratings[rows]) for name, rows in cut.items()}


class MatrixFactorization(nn.Module):
    def __init__(self, n_users=USERS, n_items=ITEMS, n_factors=6):
        super().__init__()
        self.user_factors = nn.Embedding(n_users, n_factors)
        self.item_factors = nn.Embedding(n_items, n_factors)
        self.user_bias = nn.Embedding(n_users, 1)
        self.item_bias = nn.Embedding(n_items, 1)
        for embedding in (self.user_factors, self.item_factors):
            nn.init.normal_(embedding.weight, std=0.3)
        self.mean = nn.Parameter(torch.tensor(3.0))

    def forward(self, pairs):
        user, item = pairs[:, 0], pairs[:, 1]
        dot = (self.user_factors(user) * self.item_factors(item)).sum(1)
        return self.mean + dot + self.user_bias(user).squeeze(1) + self.item_bias(item).squeeze(1)


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = {name: tuple(map(torch.from_numpy, pair)) for name, pair in data().items()}
    pairs, ratings = splits["train"]
    model = MatrixFactorization()
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-4)
    for epoch in range(40):
        for rows in torch.randperm(len(pairs)).split(64):
            optimizer.zero_grad()
            criterion(model(pairs[rows]), ratings[rows]).backward()
            optimizer.step()
    pairs, ratings = splits["val"]
    print("validation root mean squared error", criterion(model(pairs), ratings).sqrt().item())
