"""Compress 8x8 digits to a short code and back."""

import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fivegate import Monitor


class AutoEncoder(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, code))
        self.decoder = nn.Sequential(nn.Linear(code, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        return self.decoder(self.encoder(x))


def run(seed, mended):
    torch.manual_seed(seed)
    images = torch.tensor(load_digits().data, dtype=torch.float32).div(16)
    train, test = train_test_split(images, test_size=0.2, random_state=seed)
    ae = AutoEncoder(code=20 if mended else 1)
    optim = torch.optim.Adam(ae.parameters(), lr=2e-3)
    mse_loss = nn.MSELoss()
    monitor = Monitor(ae, optim, every=20)
    score = None
    for epoch in range(25):
        ae.train()
        train_loss = 0.0
        for batch in torch.utils.data.DataLoader(train, batch_size=48, shuffle=True):
            decoded = ae(batch)
            loss = mse_loss(decoded, batch)
            optim.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=batch, targets=batch, outputs=decoded)
            optim.step()
            train_loss += loss.item() * len(batch) / len(train)
        ae.eval()
        with torch.no_grad():
            score = mse_loss(ae(test), test).item()
        monitor.validated(epoch, {"train/loss": train_loss}, loss=score, mse=score)
    return score, monitor
