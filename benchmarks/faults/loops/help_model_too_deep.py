import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from fivegate import Monitor

DEPTH = 22


def build(depth):
    layers = [nn.Linear(64, 20), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(20, 20), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(20, 10))


def run(seed, mended):
    torch.manual_seed(seed)
    bunch = load_digits()
    parts = train_test_split(bunch.data / 8 - 1, bunch.target, test_size=0.25, stratify=bunch.target, random_state=seed)
    x, xv = (torch.tensor(p, dtype=torch.float32) for p in parts[:2])
    y, yv = (torch.tensor(p) for p in parts[2:])
    net = build(2 if mended else DEPTH)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    monitor = Monitor(net, optimizer)
    for epoch in range(20):
        net.train()
        total = 0.0
        for i in torch.randperm(len(x)).split(32):
            loss = nn.functional.cross_entropy(net(x[i]), y[i])
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            total += loss.item() * len(i)
        net.eval()
        with torch.no_grad():
            out = net(xv)
        acc = (out.argmax(1) == yv).float().mean().item()
        monitor.validated(
            epoch, {"train/loss": total / len(x)}, loss=nn.functional.cross_entropy(out, yv).item(), accuracy=acc
        )
    return acc, monitor
