"""Verification: do two signals come from the same machine? Contrastive training of pairs."""

import numpy as np
import torch
from torch import nn

from fivegate import Monitor

MACHINES, MARGIN = 4, 1.0


def signals(count, prototypes, rng):
    who = rng.integers(0, MACHINES, count)
    gain = rng.uniform(0.7, 1.3, (count, 1))
    return torch.tensor(prototypes[who] * gain + rng.normal(0, 0.8, (count, 30)), dtype=torch.float32), who


def pairs(who, count, rng):
    groups = [np.flatnonzero(who == m) for m in range(MACHINES)]
    left, right, same = [], [], []
    for k in range(count):
        i = rng.integers(len(who))
        if k % 2:
            j = rng.choice(groups[who[i]])
        else:
            j = rng.choice(groups[(who[i] + rng.integers(1, MACHINES)) % MACHINES])
        left.append(i), right.append(j), same.append(float(who[i] == who[j]))
    return torch.tensor(left), torch.tensor(right), torch.tensor(same)


class Siamese(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 16))
        self.eps = eps

    def forward(self, a, b):
        gap = self.embed(a) - self.embed(b)
        return torch.sqrt((gap**2).sum(1) + self.eps)


def contrastive(distance, same):
    return (same * distance**2 + (1 - same) * torch.relu(MARGIN - distance) ** 2).mean()


def run(seed, mended):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(0, 1, (MACHINES, 30))
    x, who = signals(4000, prototypes, rng)
    xv, who_v = signals(400, prototypes, rng)
    lv, rv, sv = pairs(who_v, 400, np.random.default_rng(99))
    keep = lv != rv
    lv, rv, sv = lv[keep], rv[keep], sv[keep]
    model = Siamese(1e-6 if mended else 0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(25):
        left, right, same = pairs(who, 320, rng)
        total = 0.0
        for part in torch.arange(320).split(32):
            distance = model(x[left[part]], x[right[part]])
            loss = contrastive(distance, same[part])
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, targets=same[part], outputs=distance)
            optimizer.step()
            total += loss.item() / 10
        with torch.no_grad():
            distance = model(xv[lv], xv[rv])
            accuracy = ((distance < MARGIN / 2).float() == sv).float().mean().item()
            monitor.validated(epoch, {"train/loss": total}, loss=contrastive(distance, sv).item(), accuracy=accuracy)
    return accuracy, monitor
