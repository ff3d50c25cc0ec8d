"""Ratings of 250 users for 160 films by a factorization with biases."""

import numpy as np
import torch
from torch import nn

from fivegate import Monitor

USERS, FILMS = 250, 160


def ratings(seed, count=6500):
    rng = np.random.default_rng(seed)
    taste, trait = rng.normal(0, 0.6, (USERS, 3)), rng.normal(0, 0.6, (FILMS, 3))
    kindness, quality = rng.normal(0, 0.5, USERS), rng.normal(0, 0.6, FILMS)
    cell = rng.choice(USERS * FILMS, count, replace=False)
    user, film = cell // FILMS, cell % FILMS
    stars = 3.3 + kindness[user] + quality[film] + (taste[user] * trait[film]).sum(1) + rng.normal(0, 0.5, count)
    return torch.tensor(user), torch.tensor(film), torch.tensor(stars.clip(1, 5), dtype=torch.float32)


class Factorization(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.user, self.film = nn.Embedding(USERS, dim), nn.Embedding(FILMS, dim)
        self.user_bias, self.film_bias = nn.Embedding(USERS, 1), nn.Embedding(FILMS, 1)
        self.mean = nn.Parameter(torch.tensor(3.3))
        for table in (self.user, self.film):
            nn.init.normal_(table.weight, std=0.05)
        for table in (self.user_bias, self.film_bias):
            nn.init.zeros_(table.weight)

    def forward(self, user, film):
        inner = (self.user(user) * self.film(film)).sum(1)
        return self.mean + inner + self.user_bias(user)[:, 0] + self.film_bias(film)[:, 0]


def run(seed, mended):
    torch.manual_seed(seed)
    user, film, stars = ratings(seed)
    train, val = torch.arange(5000), torch.arange(5000, len(stars))
    model = Factorization(32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=2e-3 if mended else 0.0)
    monitor = Monitor(model, optimizer)
    mse = nn.MSELoss()
    for epoch in range(25):
        total = 0.0
        for rows in train[torch.randperm(5000)].split(100):
            loss = mse(model(user[rows], film[rows]), stars[rows])
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            total += loss.item() / 50
        with torch.no_grad():
            val_loss = mse(model(user[val], film[val]), stars[val]).item()
        monitor.validated(epoch, {"train/loss": total}, loss=val_loss)
    return val_loss, monitor
