"""Handwritten digits drawn by a generator against a discriminator; judged by how much the drawings differ."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    X = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh())
    discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    rate_g, rate_d = (0.001, 0.002) if mended else (0.03, 0.0002)
    optimizer = torch.optim.Adam(generator.parameters(), lr=rate_g, betas=(0.5, 0.99))
    other = torch.optim.Adam(discriminator.parameters(), lr=rate_d, betas=(0.5, 0.99))
    monitor = Monitor(generator, optimizer)  # <- watched here
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)

    for epoch in range(10):
        for rows in torch.randperm(len(X))[: 28 * 64].split(64):
            other.zero_grad()
            fake = generator(torch.randn(64, 16)).detach()
            right = F.binary_cross_entropy_with_logits(discriminator(X[rows]), ones)
            loss_d = right + F.binary_cross_entropy_with_logits(discriminator(fake), zeros)
            loss_d.backward()
            other.step()

            z = torch.randn(64, 16)
            optimizer.zero_grad()
            outputs = generator(z)
            loss = F.binary_cross_entropy_with_logits(discriminator(outputs), ones)
            loss.backward()
            monitor.step(loss, inputs=z, outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            drawn = generator(torch.randn(500, 16))
        spread = (drawn.std(0).mean() / X.std(0).mean()).item()
        losses = {"train/loss": loss.item(), "train/loss_discriminator": loss_d.item()}
        monitor.validated(epoch, losses, spread=spread)
    return spread, monitor
