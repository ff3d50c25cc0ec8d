"""A variational autoencoder: forward returns the reconstruction, the mean and the logarithm of the variance."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits


def data():
    X, y = load_digits(return_X_y=True)
    X = torch.tensor(X / 16, dtype=torch.float32)
    y = torch.tensor(y)
    return {"train": (X[:1000], y[:1000]), "val": (X[1000:1400], y[1000:1400]), "test": (X[1400:], y[1400:])}


class VAE(nn.Module):
    def __init__(self, latent=6):
        super().__init__()
        self.fc1 = nn.Linear(64, 64)
        self.fc_mu = nn.Linear(64, latent)
        self.fc_logvar = nn.Linear(64, latent)
        self.fc3 = nn.Linear(latent, 64)
        self.fc4 = nn.Linear(64, 64)

    def encode(self, x):
        h = F.relu(self.fc1(x))
        return self.fc_mu(h), self.fc_logvar(h)

    def reparameterize(self, mu, logvar):
        if not self.training:
            return mu
        return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)

    def decode(self, z):
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar


def loss_function(recon, x, mu, logvar):
    bce = F.binary_cross_entropy(recon, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (bce + kld) / len(x)


def step(model, batch):
    x, _ = batch
    recon, mu, logvar = model(x)
    return {"loss": loss_function(recon, x, mu, logvar), "reconstruction_error": F.mse_loss(recon, x)}


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    X, _ = splits["train"]
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(25):
        for rows in torch.randperm(len(X)).split(32):
            optimizer.zero_grad()
            recon, mu, logvar = model(X[rows])
            loss_function(recon, X[rows], mu, logvar).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        result = step(model, splits["val"])
    print("validation reconstruction error", result["reconstruction_error"].item(), "loss", result["loss"].item())
