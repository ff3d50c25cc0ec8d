"""Several outputs: one head for the class of a digit, another for how much ink it has."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits


def data():
    X, y = load_digits(return_X_y=True)
    X = torch.tensor(X / 16, dtype=torch.float32)
    targets = torch.stack([torch.tensor(y, dtype=torch.float32), X.sum(1)], dim=1)
    return {
        "train": (X[:1000], targets[:1000]),
        "val": (X[1000:1400], targets[1000:1400]),
        "test": (X[1400:], targets[1400:]),
    }


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.digit = nn.Linear(64, 10)
        self.ink = nn.Linear(64, 1)

    def forward(self, x):
        h = self.trunk(x)
        return self.digit(h), self.ink(h)


def step(model, batch):
    x, targets = batch
    digit, ink = targets[:, 0].long(), targets[:, 1]
    logits, predicted_ink = model(x)
    loss = F.cross_entropy(logits, digit) + 0.1 * F.mse_loss(predicted_ink.squeeze(1), ink)
    return {
        "loss": loss,
        "digit_accuracy": (logits.argmax(1) == digit).float().mean(),
        "ink_error": (predicted_ink.squeeze(1) - ink).abs().mean(),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    x, targets = splits["train"]
    model = TwoHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(20):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            step(model, (x[rows], targets[rows]))["loss"].backward()
            optimizer.step()
    with torch.no_grad():
        result = step(model, splits["val"])
    print("validation accuracy", result["digit_accuracy"].item(), "error of ink", result["ink_error"].item())
