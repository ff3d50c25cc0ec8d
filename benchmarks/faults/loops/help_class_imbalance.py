import torch
from torch import nn

from fivegate import Monitor


class Alarm(nn.Module):
    def __init__(self, hidden=16):
        super().__init__()
        self.gru = nn.GRU(2, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        states, _ = self.gru(x)
        return self.head(states.mean(1)).squeeze(1)


def machines(n, generator):
    faulty = torch.rand(n, generator=generator) < 0.05
    x = torch.randn(n, 16, 2, generator=generator)
    x[..., 0] += faulty[:, None] * 0.45
    x[..., 1] += faulty[:, None] * torch.linspace(-0.5, 0.5, 16)
    return x, faulty.float()


def balanced(scores, y):
    said = scores > 0
    return 0.5 * (said[y == 1].float().mean() + (~said[y == 0]).float().mean()).item()


def run(seed, mended):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    x, y = machines(3000, generator)
    xv, yv = machines(1500, generator)
    model = Alarm()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    weight = (y == 0).sum() / (y == 1).sum() if mended else None
    criterion = nn.BCEWithLogitsLoss(pos_weight=weight)
    monitor = Monitor(model, optimizer)
    score = 0.0
    for epoch in range(10):
        model.train()
        running = 0.0
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            loss = criterion(model(x[rows]), y[rows])
            loss.backward()
            monitor.step(loss, inputs=x[rows], targets=y[rows])
            optimizer.step()
            running += loss.item() * len(rows) / len(x)
        model.eval()
        with torch.no_grad():
            out = model(xv)
            score = balanced(out, yv)
            monitor.validated(
                epoch,
                {"train/loss": running},
                loss=criterion(out, yv).item(),
                accuracy=((out > 0) == (yv > 0)).float().mean().item(),
                balanced_accuracy=score,
            )
    return score, monitor
