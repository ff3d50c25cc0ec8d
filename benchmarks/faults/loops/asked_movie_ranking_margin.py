"""Pairwise ranking of films for users: the film that was watched should score above one that was not."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from fivegate import Monitor

N_USERS, N_ITEMS = 120, 80


def interactions(seed):
    g = torch.Generator().manual_seed(1000 + seed)
    taste = torch.randn(N_USERS, 3, generator=g)
    kind = torch.randn(N_ITEMS, 3, generator=g)
    true = taste @ kind.T + 0.3 * torch.randn(N_USERS, N_ITEMS, generator=g)
    n = 9000
    u = torch.randint(N_USERS, (n,), generator=g)
    a = torch.randint(N_ITEMS, (n,), generator=g)
    b = torch.randint(N_ITEMS, (n,), generator=g)
    better = true[u, a] > true[u, b]
    pos, neg = torch.where(better, a, b), torch.where(better, b, a)
    keep = a != b
    return u[keep], pos[keep], neg[keep]


class MF(nn.Module):
    def __init__(self, dim=12):
        super().__init__()
        self.users = nn.Embedding(N_USERS, dim)
        self.items = nn.Embedding(N_ITEMS, dim)
        self.item_bias = nn.Embedding(N_ITEMS, 1)
        nn.init.normal_(self.users.weight, std=0.1)
        nn.init.normal_(self.items.weight, std=0.1)
        nn.init.zeros_(self.item_bias.weight)

    def forward(self, u, i):
        return (self.users(u) * self.items(i)).sum(-1) + self.item_bias(i).squeeze(-1)


def run(seed, mended):
    torch.manual_seed(seed)
    u, pos, neg = interactions(seed)
    n_train = 7000
    target = 1.0 if mended else -1.0
    model = MF()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-5)
    monitor = Monitor(model, optimizer, every=50)

    def ranking_loss(rows):
        s_pos, s_neg = model(u[rows], pos[rows]), model(u[rows], neg[rows])
        return F.margin_ranking_loss(s_pos, s_neg, torch.full_like(s_pos, target), margin=0.5), s_pos, s_neg

    held_out = torch.arange(n_train, len(u))
    for epoch in range(12):
        model.train()
        epoch_loss = 0.0
        for rows in torch.randperm(n_train).split(128):
            loss, _, _ = ranking_loss(rows)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            epoch_loss += loss.item() * len(rows) / n_train
        model.eval()
        with torch.no_grad():
            vloss, s_pos, s_neg = ranking_loss(held_out)
            accuracy = (s_pos > s_neg).float().mean().item()
        monitor.validated(epoch, {"train/loss": epoch_loss}, loss=vloss.item(), accuracy=accuracy)
    return accuracy, monitor
