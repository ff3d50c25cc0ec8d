import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from fivegate import Monitor


def read_table(seed):
    """Scans and their labels, in the order of arrival; the scanner failed for some of them."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    X, y = digits.data[order] / 16.0, digits.target[order]
    failed = rng.choice(np.arange(1000, len(y)), 25, replace=False)
    X[failed, rng.integers(0, 64, 25)] = np.nan
    return X, y


def clean(X, y, both):
    good = ~np.isnan(X).any(axis=1)
    return X[good], (y[good] if both else y[: good.sum()])


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = clean(*read_table(seed), both=mended)
    X, y = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
    perm = torch.randperm(len(X))
    tr, va = perm[:1300], perm[1300:]
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    ce = nn.CrossEntropyLoss()
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    monitor = Monitor(net, opt)
    for epoch in range(25):
        net.train()
        epoch_loss = 0.0
        for rows in tr[torch.randperm(len(tr))].split(50):
            opt.zero_grad()
            loss = ce(net(X[rows]), y[rows])
            loss.backward()
            opt.step()
            monitor.step(loss, inputs=X[rows], targets=y[rows])
            epoch_loss += loss.item() / 26
        net.eval()
        with torch.no_grad():
            z = net(X[va])
            acc = (z.argmax(1) == y[va]).float().mean().item()
            monitor.validated(epoch, {"train/loss": epoch_loss}, loss=ce(z, y[va]).item(), accuracy=acc)
    return acc, monitor
