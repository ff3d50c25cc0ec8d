import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from fivegate import Monitor


class Criterion(nn.Module):
    def __init__(self, stable):
        super().__init__()
        self.stable = stable

    def forward(self, score, y):
        if self.stable:
            return nn.functional.binary_cross_entropy_with_logits(score, y)
        p = torch.sigmoid(score)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def prepare(seed):
    x, y = load_breast_cancer(return_X_y=True)
    x, xv, y, yv = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    scaler = StandardScaler().fit(x)
    tensor = lambda a: torch.tensor(a, dtype=torch.float32)
    return tensor(scaler.transform(x)), tensor(scaler.transform(xv)), tensor(y), tensor(yv)


def run(seed, mended):
    torch.manual_seed(seed)
    x, xv, y, yv = prepare(seed)
    net = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    criterion = Criterion(mended)
    monitor = Monitor(net, opt)
    for epoch in range(25):
        net.train()
        losses = []
        for rows in torch.randperm(len(x)).split(16):
            xb, yb = x[rows], y[rows]
            opt.zero_grad()
            loss = criterion(net(xb), yb)
            loss.backward()
            monitor.step(loss, inputs=xb, targets=yb)
            opt.step()
            losses.append(loss.item())
        net.eval()
        with torch.no_grad():
            out = net(xv)
            acc = ((out > 0).float() == yv).float().mean().item()
            monitor.validated(
                epoch, {"train/loss": sum(losses) / len(losses)}, loss=criterion(out, yv).item(), accuracy=acc
            )
    return acc, monitor
