import copy

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fivegate import Monitor


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 24, batch_first=True)
        self.out = nn.Linear(24, 4)

    def forward(self, x):
        return self.out(self.rnn(x)[1][0])


def waves(n, g):
    y = torch.randint(0, 4, (n,), generator=g)
    t = torch.arange(14.0)
    phase = torch.rand(n, 1, generator=g) * 6.28
    signal = torch.sin(t * (0.35 + 0.4 * y[:, None]) + phase)
    x = torch.stack([signal, signal.roll(1, 1), signal.abs(), torch.zeros_like(signal)], 2)
    return x + 0.15 * torch.randn(n, 14, 4, generator=g), y


class Job:
    def __init__(self, mended):
        self.mended = mended
        self.model = Tagger()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.9)
        self.blank = copy.deepcopy(self.optimizer.state_dict())
        self.monitor = Monitor(self.model, self.optimizer)
        self.disk = None

    def start(self):
        self.optimizer.load_state_dict(copy.deepcopy(self.blank))
        self.scheduler = LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / 400))
        if self.disk is not None:
            self.model.load_state_dict(self.disk["model"])
            if self.mended:
                self.optimizer.load_state_dict(self.disk["optimizer"])
                self.scheduler.load_state_dict(self.disk["scheduler"])

    def save(self):
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.disk = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}

    def epoch(self, x, y):
        self.model.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(64):
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x[rows]), y[rows])
            loss.backward()
            self.monitor.step(loss, inputs=x[rows], targets=y[rows])
            self.optimizer.step()
            self.scheduler.step()
            total += loss.item() * len(rows)
        return total / len(x)


def run(seed, mended):
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    train, (xv, yv) = waves(1280, g), waves(500, g)
    job = Job(mended)
    for epoch in range(28):
        if epoch % 2 == 0:
            job.start()
        loss = job.epoch(*train)
        job.save()
        job.model.eval()
        with torch.no_grad():
            out = job.model(xv)
        accuracy = (out.argmax(1) == yv).float().mean().item()
        job.monitor.validated(
            epoch, {"train/loss": loss}, loss=nn.functional.cross_entropy(out, yv).item(), accuracy=accuracy
        )
    return accuracy, job.monitor
