import torch
from sklearn.datasets import load_wine
from torch import nn

from fivegate import Monitor


class Wine:
    def __init__(self, seed, dtype):
        bunch = load_wine()
        g = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(bunch.target), generator=g)
        x = torch.tensor(bunch.data)[order]
        x = (x - x[:120].mean(0)) / x[:120].std(0)
        y = torch.tensor(bunch.target)[order]
        self.train, self.val = (x[:120].to(dtype), y[:120]), (x[120:].to(dtype), y[120:])


def run(seed, mended):
    torch.manual_seed(seed)
    dtype = torch.float32 if mended else torch.float16
    wine = Wine(seed, dtype)
    model = nn.Sequential(
        nn.Linear(13, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    ).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, optimizer)
    x, y = wine.train
    for epoch in range(20):
        model.train()
        running, right = 0.0, 0
        for rows in torch.randperm(len(x)).split(20):
            optimizer.zero_grad()
            out = model(x[rows])
            loss = nn.functional.cross_entropy(out, y[rows])
            loss.backward()
            monitor.step(loss, inputs=x[rows], targets=y[rows], outputs=out)
            optimizer.step()
            running += loss.item() * len(rows) / len(x)
            right += (out.argmax(1) == y[rows]).sum().item()
        model.eval()
        with torch.no_grad():
            out = model(wine.val[0])
            acc = (out.argmax(1) == wine.val[1]).float().mean().item()
            val_loss = nn.functional.cross_entropy(out, wine.val[1]).item()
        monitor.validated(epoch, {"train/loss": running, "train/accuracy": right / len(x)}, loss=val_loss, accuracy=acc)
    return acc, monitor
