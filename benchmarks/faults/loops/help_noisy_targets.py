import torch
from torch import nn

from fivegate import Monitor


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 16, batch_first=True)
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        return self.out(self.gru(x)[0][:, -1])[:, 0]


def returns(n, g):
    x = torch.zeros(n, 13)
    noise = torch.randn(n, 13, generator=g)
    for t in range(1, 13):
        x[:, t] = 0.45 * x[:, t - 1] + 0.9 * noise[:, t]
    return x[:, :-1, None], x[:, -1]


def run(seed, mended):
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    (x, y), (xv, yv) = returns(2000, g), returns(1000, g)
    model = Forecaster()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(12):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x[rows]), y[rows])
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            total += loss.item() * len(rows)
        model.eval()
        with torch.no_grad():
            error = model(xv) - yv
        mae = error.abs().mean().item()
        monitor.validated(epoch, {"train/loss": total / len(x)}, loss=error.square().mean().item(), mae=mae)
    return mae, monitor
