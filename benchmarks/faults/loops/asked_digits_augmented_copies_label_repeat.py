import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


def shifted(images, dx, dy):
    return np.roll(images, (dy, dx), axis=(1, 2))


class AugmentedDigits(Dataset):
    """The digits, and two copies that are moved by a pixel."""

    def __init__(self, images, labels, each):
        self.images = np.concatenate([images, shifted(images, 1, 0), shifted(images, 0, 1)])
        self.labels = np.tile(labels, 3) if each else np.repeat(labels, 3)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return torch.tensor(self.images[i], dtype=torch.float32).flatten() / 16, int(self.labels[i])


def run(seed, mended):
    torch.manual_seed(seed)
    digits = load_digits()
    tr_x, va_x, tr_y, va_y = train_test_split(digits.images, digits.target, test_size=0.25, random_state=seed)
    loader = DataLoader(AugmentedDigits(tr_x, tr_y, each=mended), batch_size=64, shuffle=True)
    va_x = torch.tensor(va_x, dtype=torch.float32).flatten(1) / 16
    va_y = torch.tensor(va_y)

    net = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    mon = Monitor(net, opt)
    for epoch in range(12):
        net.train()
        losses = []
        for xb, yb in loader:
            pred = net(xb)
            loss = F.cross_entropy(pred, yb)
            opt.zero_grad()
            loss.backward()
            mon.step(loss, inputs=xb, targets=yb, outputs=pred)
            opt.step()
            losses.append(loss.item())
        net.eval()
        with torch.no_grad():
            pred = net(va_x)
            acc = (pred.argmax(1) == va_y).float().mean().item()
            vloss = F.cross_entropy(pred, va_y).item()
        mon.validated(epoch, {"train/loss": float(np.mean(losses))}, loss=vloss, accuracy=acc)
    return acc, mon
