"""Residual net with zero-started branches and head, tiny batches and a cosine schedule with warm restarts."""

import torch
import torch.nn as nn
from sklearn.datasets import make_friedman1

from fivegate import Monitor


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(self.norm(x))))


class ResMLP(nn.Module):
    def __init__(self, n_in, width=32, depth=3):
        super().__init__()
        self.stem = nn.Linear(n_in, width)
        self.blocks = nn.Sequential(*[Residual(width) for _ in range(depth)])
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = make_friedman1(n_samples=900, noise=1.0, random_state=seed)
    X = torch.tensor((X - 0.5) / 0.29, dtype=torch.float32)
    y = torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)[:, None]
    Xt, yt, Xv, yv = X[:700], y[:700], X[700:], y[700:]
    net = ResMLP(10)
    opt = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.05)
    sched = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=5)
    mon = Monitor(net, opt, every=25)
    for epoch in range(15):
        net.train()
        acc = 0.0
        for idx in torch.randperm(700).split(10):
            pred = net(Xt[idx])
            loss = nn.functional.mse_loss(pred, yt[idx])
            opt.zero_grad()
            loss.backward()
            mon.step(loss, inputs=Xt[idx], targets=yt[idx], outputs=pred)
            opt.step()
            acc += loss.item() * len(idx) / 700
        sched.step()
        net.eval()
        with torch.no_grad():
            mse = nn.functional.mse_loss(net(Xv), yv).item()
        r2 = 1 - mse / yv.var(unbiased=False).item()
        mon.validated(epoch, {"train/loss": acc}, loss=mse, r2=r2)
    return r2, mon
