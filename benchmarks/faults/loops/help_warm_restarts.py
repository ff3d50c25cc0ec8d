import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from fivegate import Monitor


def rings(n, g):
    y = torch.randint(0, 4, (n,), generator=g)
    direction = nn.functional.normalize(torch.randn(n, 6, generator=g), dim=1)
    return direction * (0.6 + 0.5 * y[:, None] + 0.06 * torch.randn(n, 1, generator=g)), y


def run(seed, mended):
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    (x, y), (xv, yv) = rings(3000, g), rings(800, g)
    model = nn.Sequential(nn.Linear(6, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.35, momentum=0.9, nesterov=True)
    steps = -(-len(x) // 64)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=6 * steps, eta_min=1e-4)
    monitor = Monitor(model, optimizer)
    for epoch in range(24):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            monitor.step(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(rows)
        model.eval()
        with torch.no_grad():
            out = model(xv)
        accuracy = (out.argmax(1) == yv).float().mean().item()
        monitor.validated(
            epoch, {"train/loss": total / len(x)}, loss=nn.functional.cross_entropy(out, yv).item(), accuracy=accuracy
        )
    return accuracy, monitor
