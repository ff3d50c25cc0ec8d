"""A GAN learns a ring of eight Gaussians. The script alternates two optimizers; the step sums both losses instead."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

LATENT = 4


def ring(n, seed):
    g = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=g) * (2 * math.pi / 8)
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.05 * torch.randn(n, 2, generator=g)


def data():
    """Data without labels."""
    return {
        name: (ring(n, seed), torch.zeros(n, dtype=torch.long))
        for seed, (name, n) in enumerate((("train", 2000), ("val", 500), ("test", 500)))
    }


def net(d_in, d_out):
    return nn.Sequential(
        nn.Linear(d_in, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, d_out)
    )


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = net(LATENT, 2)
        self.discriminator = net(2, 1)

    def forward(self, z):
        return self.generator(z)


def discriminator_loss(model, real, fake):
    real, fake = model.discriminator(real), model.discriminator(fake.detach())
    return F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )


def generator_loss(model, fake):
    score = model.discriminator(fake)
    return F.binary_cross_entropy_with_logits(score, torch.ones_like(score))


def energy_distance(a, b):
    return 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()


def step(model, batch):
    """Both players in one update: the discriminator is frozen while the generator's loss is computed."""
    real, _ = batch
    if model.training:
        noise = torch.randn(len(real), LATENT)
    else:
        noise = torch.randn(len(real), LATENT, generator=torch.Generator().manual_seed(0))
    fake = model(noise)
    model.discriminator.requires_grad_(False)
    g_loss = generator_loss(model, fake)
    model.discriminator.requires_grad_(True)
    d_loss = discriminator_loss(model, real, fake)
    return {"loss": g_loss + d_loss, "distance": energy_distance(fake.detach(), real)}


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    real, _ = splits["train"]
    model = GAN()
    optimizer_g = torch.optim.Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(model.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    for epoch in range(40):
        for rows in torch.randperm(len(real)).split(100):
            fake = model(torch.randn(len(rows), LATENT))
            optimizer_d.zero_grad()
            discriminator_loss(model, real[rows], fake).backward()
            optimizer_d.step()
            optimizer_g.zero_grad()
            generator_loss(model, fake).backward()
            optimizer_g.step()
    model.eval()
    with torch.no_grad():
        print("validation energy distance", step(model, splits["val"])["distance"].item())
