import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from fivegate import Monitor


def friedman(n, g):
    x = torch.rand(n, 8, generator=g)
    y = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return 2 * x - 1, (y - 14.4) / 4.9 + 0.05 * torch.randn(n, generator=g)


class Regressor:
    def __init__(self, step_size):
        self.net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
        self.scheduler = StepLR(self.optimizer, step_size=step_size, gamma=0.2)
        self.monitor = Monitor(self.net, self.optimizer)

    def one_epoch(self, x, y):
        self.net.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(64):
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.net(x[rows])[:, 0], y[rows])
            loss.backward()
            self.monitor.step(loss)
            self.optimizer.step()
            total += loss.item() * len(rows)
        self.scheduler.step()
        return total / len(x)

    def fit(self, train, val, epochs):
        for epoch in range(epochs):
            loss = self.one_epoch(*train)
            self.net.eval()
            with torch.no_grad():
                error = self.net(val[0])[:, 0] - val[1]
            mae = error.abs().mean().item()
            self.monitor.validated(epoch, {"train/loss": loss}, loss=error.square().mean().item(), mae=mae)
        return mae


def run(seed, mended):
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    regressor = Regressor(step_size=24 if mended else 1)
    return regressor.fit(friedman(2000, g), friedman(500, g), 30), regressor.monitor
