"""Siamese network with a contrastive loss on digits, rated by the nearest class mean."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from fivegate import Monitor


class Embedder(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, dim))

    def forward(self, x):
        return self.body(x)


def euclidean(a, b, mended):
    if mended:
        return nn.functional.pairwise_distance(a, b)
    return torch.sqrt(((a - b) ** 2).sum(dim=1))


def contrastive_loss(a, b, same, margin, mended):
    d = euclidean(a, b, mended)
    return (same * d.pow(2) + (1 - same) * torch.clamp(margin - d, min=0).pow(2)).mean()


def sample_pairs(y, by_class, n):
    first = torch.randint(len(y), (n,))
    same = (torch.rand(n) < 0.5).float()
    second = torch.randint(len(y), (n,))
    for i in range(n):
        if same[i]:
            pool = by_class[int(y[first[i]])]
            second[i] = pool[torch.randint(len(pool), (1,))]
    same = (y[first] == y[second]).float()
    return first, second, same


def run(seed, mended):
    torch.manual_seed(seed)
    digits = load_digits()
    X = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    order = torch.randperm(len(X))
    X, y = X[order], y[order]
    Xtr, ytr, Xva, yva = X[:1400], y[:1400], X[1400:], y[1400:]
    by_class = {c: (ytr == c).nonzero().flatten() for c in range(10)}

    net = Embedder()
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    mon = Monitor(net, opt, every=20)
    for epoch in range(12):
        net.train()
        total = 0.0
        for _ in range(25):
            i, j, same = sample_pairs(ytr, by_class, 64)
            loss = contrastive_loss(net(Xtr[i]), net(Xtr[j]), same, 1.0, mended)
            opt.zero_grad()
            loss.backward()
            mon.step(loss)
            opt.step()
            total += loss.item()
        net.eval()
        with torch.no_grad():
            emb = net(Xtr)
            means = torch.stack([emb[by_class[c]].mean(0) for c in range(10)])
            guess = torch.cdist(net(Xva), means).argmin(1)
            acc = (guess == yva).float().mean().item()
            i, j, same = sample_pairs(yva, {c: (yva == c).nonzero().flatten() for c in range(10)}, 200)
            vloss = contrastive_loss(net(Xva[i]), net(Xva[j]), same, 1.0, mended).item()
        mon.validated(epoch, {"train/loss": total / 25}, loss=vloss, accuracy=acc)
    return acc, mon
