"""Denoise 8x8 digits with a small autoencoder."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from fivegate import Monitor


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 64), nn.Sigmoid())

    def forward(self, x):
        return self.decoder(self.encoder(x))


def run(seed, mended):
    torch.manual_seed(seed)
    dtype = torch.float32 if mended else torch.float16
    clean = torch.tensor(load_digits().data / 16.0, dtype=dtype)
    clean = clean[torch.randperm(len(clean))]
    train, val = clean[:1400], clean[1400:]

    def corrupt(x):
        return (x + 0.25 * torch.randn(x.shape).to(dtype)).clamp(0, 1)

    model = Denoiser().to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_fn = nn.MSELoss()
    monitor = Monitor(model, optimizer, every=25)
    val_noisy = corrupt(val)
    mse = float("inf")
    for epoch in range(20):
        model.train()
        losses = []
        for rows in torch.randperm(len(train)).split(64):
            x = train[rows]
            loss = loss_fn(model(corrupt(x)), x)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            mse = loss_fn(model(val_noisy), val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=mse, mse=mse)
    return mse, monitor
