"""Points on a ring of eight clusters, drawn by a generator against a discriminator."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor

CENTERS = torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)])


def real(n):
    return CENTERS[torch.randint(8, (n,))] + 0.05 * torch.randn(n, 2)


def run(seed, mended):
    torch.manual_seed(seed)
    noise = 8
    generator = nn.Sequential(nn.Linear(noise, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    discriminator = nn.Sequential(
        nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
    )
    rate_g, rate_d = (0.001, 0.002) if mended else (0.05, 0.0001)
    optimizer = torch.optim.Adam(generator.parameters(), lr=rate_g, betas=(0.5, 0.99))
    other = torch.optim.Adam(discriminator.parameters(), lr=rate_d, betas=(0.5, 0.99))
    monitor = Monitor(generator, optimizer)  # <- watched here
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)

    for epoch in range(8):
        for _ in range(60):
            other.zero_grad()
            fake = generator(torch.randn(64, noise)).detach()
            right = F.binary_cross_entropy_with_logits(discriminator(real(64)), ones)
            loss_d = right + F.binary_cross_entropy_with_logits(discriminator(fake), zeros)
            loss_d.backward()
            other.step()

            z = torch.randn(64, noise)
            optimizer.zero_grad()
            outputs = generator(z)
            loss = F.binary_cross_entropy_with_logits(discriminator(outputs), ones)
            loss.backward()
            monitor.step(loss, inputs=z, outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            drawn = generator(torch.randn(500, noise))
        nearest_counts = torch.cdist(drawn, CENTERS).argmin(1).bincount(minlength=8)
        modes = (nearest_counts > 15).sum().item()
        losses = {"train/loss": loss.item(), "train/loss_discriminator": loss_d.item()}
        monitor.validated(epoch, losses, modes=modes, spread=drawn.std(0).mean().item())
    return modes, monitor
