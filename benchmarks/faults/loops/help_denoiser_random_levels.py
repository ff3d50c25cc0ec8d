"""A denoising autoencoder for digits: the noise level of each row is drawn anew at every step."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from fivegate import Monitor


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(65, 128), nn.SiLU(), nn.Linear(128, 64), nn.SiLU())
        self.decode = nn.Sequential(nn.Linear(65, 128), nn.SiLU(), nn.Linear(128, 64))

    def forward(self, x, level):
        return self.decode(torch.cat([self.encode(torch.cat([x, level], 1)), level], 1))


def corrupt(x):
    level = torch.rand(len(x), 1)
    noise = torch.randn_like(x)
    return (1 - level).sqrt() * x + level.sqrt() * noise, level, noise


def run(seed, mended):
    torch.manual_seed(seed)
    X = torch.tensor(load_digits().data, dtype=torch.float32)
    X = (X - X.mean()) / X.std()
    X = X[torch.randperm(len(X))]
    train, val = X[:1400], X[1400:]
    model = Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(40):
        model.train()
        losses = []
        for batch in train[torch.randperm(1400)].split(28):
            noisy, level, noise = corrupt(batch)
            optimizer.zero_grad()
            loss = ((model(noisy, level) - noise) ** 2).mean()
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            noisy, level, noise = corrupt(val)
            val_loss = ((model(noisy, level) - noise) ** 2).mean().item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss)
    return val_loss, monitor
