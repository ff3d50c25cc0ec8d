import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from fivegate import Monitor


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())
        self.first = nn.Linear(128, 7)
        self.second = nn.Linear(128, 3)

    def forward(self, x, head="second"):
        return getattr(self, head)(self.backbone(x))


def pretrain(model, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(10):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows], "first"), y[rows]).backward()
            optimizer.step()


def hit_rate(model, x, y, head):
    with torch.no_grad():
        out = model(x, head)
    return (out.argmax(1) == y).float().mean().item(), F.cross_entropy(out, y).item()


def run(seed, mended):
    torch.manual_seed(seed)
    bunch = load_digits()
    x, y = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    order = torch.randperm(len(x))
    train, val = order[:1300], order[1300:]
    low, high = train[y[train] < 7], train[y[train] >= 7]
    low_val, high_val = val[y[val] < 7], val[y[val] >= 7]

    model = TwoHeads()
    pretrain(model, x[low], y[low])
    if mended:
        model.backbone.requires_grad_(False)
    else:
        model.backbone.requires_grad = False

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    monitor = Monitor(model, optimizer)
    for epoch in range(15):
        model.train()
        running = 0.0
        for rows in high[torch.randperm(len(high))].split(32):
            loss = F.cross_entropy(model(x[rows]), y[rows] - 7)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            running += loss.item() * len(rows) / len(high)
        model.eval()
        old, old_loss = hit_rate(model, x[low_val], y[low_val], "first")
        new, new_loss = hit_rate(model, x[high_val], y[high_val] - 7, "second")
        accuracy = (old + new) / 2
        monitor.validated(
            epoch,
            {"train/loss": running, "val/accuracy_first": old, "val/accuracy_second": new},
            loss=(old_loss + new_loss) / 2,
            accuracy=accuracy,
        )
    return accuracy, monitor
