import torch
from sklearn.datasets import load_digits
from torch import nn, optim

from fivegate import Monitor

config = {"epochs": 15, "batch": 48, "lr": 0.05, "hidden": 64}


def batches(x, y, size):
    for rows in torch.randperm(len(x)).split(size):
        yield x[rows], y[rows]


def run(seed, mended):
    torch.manual_seed(seed)
    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32) / 16, torch.tensor(bunch.target)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    x_train, y_train, x_val, y_val = x[:1400], y[:1400], x[1400:], y[1400:]

    net = nn.Sequential(nn.Linear(64, config["hidden"]), nn.GELU(), nn.Linear(config["hidden"], 10))
    optimizer = optim.SGD(net.parameters(), lr=config["lr"], momentum=0.9 if mended else 0.999)
    monitor = Monitor(net, optimizer)

    for epoch in range(config["epochs"]):
        net.train()
        losses = []
        for xb, yb in batches(x_train, y_train, config["batch"]):
            out = net(xb)
            loss = nn.functional.cross_entropy(out, yb)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=xb, targets=yb, outputs=out)
            optimizer.step()
            losses.append(loss.item())
        net.eval()
        with torch.no_grad():
            out = net(x_val)
        accuracy = (out.argmax(1) == y_val).float().mean().item()
        monitor.validated(
            epoch,
            {"train/loss": sum(losses) / len(losses)},
            loss=nn.functional.cross_entropy(out, y_val).item(),
            accuracy=accuracy,
        )
    return accuracy, monitor
