import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits

from fivegate import Monitor


def augment(x):
    n = len(x)
    padded = F.pad(x, (1, 1, 1, 1))
    dx, dy = torch.randint(0, 3, (2,)).tolist()
    x = padded[:, :, dy : dy + 8, dx : dx + 8]
    x = x * (0.5 + torch.rand(n, 1, 1, 1)) + 0.25 * torch.randn_like(x)
    top, left = torch.randint(0, 6, (2,)).tolist()
    x = x.clone()
    x[:, :, top : top + 3, left : left + 3] = 0
    blend = 0.3 * torch.rand(n, 1, 1, 1)
    return (1 - blend) * x + blend * x[torch.randperm(n)]


def run(seed, mended):
    torch.manual_seed(seed)
    digits = load_digits()
    X = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    perm = torch.randperm(len(y))
    tr, va = perm[:1300], perm[1300:]
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(24 * 16, 10),
    )
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, opt)
    for epoch in range(16):
        model.train()
        total = hits = 0.0
        for rows in tr[torch.randperm(1300)].split(50):
            x, target = augment(X[rows]), y[rows]
            logits = model(x)
            loss = F.cross_entropy(logits, target, label_smoothing=0.05)
            opt.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=x, targets=target)
            opt.step()
            total += loss.item() / 26
            hits += (logits.argmax(1) == target).sum().item() / 1300
        model.eval()
        with torch.no_grad():
            logits = model(X[va])
        accuracy = (logits.argmax(1) == y[va]).float().mean().item()
        monitor.validated(
            epoch,
            {"train/loss": total, "train/accuracy": hits},
            loss=F.cross_entropy(logits, y[va]).item(),
            accuracy=accuracy,
        )
    return accuracy, monitor
