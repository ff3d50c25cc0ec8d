import torch
from sklearn.datasets import load_digits
from torch import nn

from fivegate import Monitor


class RandomFeatures(nn.Module):
    def __init__(self, inputs, features, classes):
        super().__init__()
        self.projection = nn.Linear(inputs, features).requires_grad_(False)
        nn.init.normal_(self.projection.weight, std=0.1)
        nn.init.uniform_(self.projection.bias, 0, 6.28)
        self.readout = nn.Linear(features, classes)

    def forward(self, x):
        return self.readout(self.projection(x).cos())


class Trainer:
    def __init__(self, model, **options):
        self.model = model
        self.optimizer = torch.optim.Adam(model.readout.parameters(), **options)
        self.monitor = Monitor(model, self.optimizer)

    def fit(self, x, y, xv, yv, epochs):
        for epoch in range(epochs):
            self.model.train()
            total = right = 0.0
            for rows in torch.randperm(len(x)).split(40):
                self.optimizer.zero_grad()
                out = self.model(x[rows])
                loss = nn.functional.cross_entropy(out, y[rows])
                loss.backward()
                self.monitor.step(loss, inputs=x[rows], targets=y[rows])
                self.optimizer.step()
                total += loss.item() * len(rows)
                right += (out.argmax(1) == y[rows]).sum().item()
            self.model.eval()
            with torch.no_grad():
                out = self.model(xv)
            accuracy = (out.argmax(1) == yv).float().mean().item()
            self.monitor.validated(
                epoch,
                {"train/loss": total / len(x), "train/accuracy": right / len(x)},
                loss=nn.functional.cross_entropy(out, yv).item(),
                accuracy=accuracy,
            )
        return accuracy


def run(seed, mended):
    torch.manual_seed(seed)
    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target)
    order = torch.randperm(len(x))
    x, y = ((x - x.mean(0)) / (x.std(0) + 1e-6))[order], y[order]
    trainer = Trainer(RandomFeatures(64, 400, 10), lr=5e-3)
    return trainer.fit(x[:1300], y[:1300], x[1300:], y[1300:], 15), trainer.monitor
