import random

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


class Augment:
    def __init__(self, erase, turns, flip, noise):
        self.erase, self.turns, self.flip, self.noise = erase, turns, flip, noise

    def __call__(self, img):
        if self.turns:
            img = torch.rot90(img, random.randint(0, 3), (1, 2))
        if self.flip and random.random() < 0.5:
            img = img.flip(2)
        img = img + self.noise * torch.randn_like(img)
        r, c = random.randint(0, 8 - self.erase), random.randint(0, 8 - self.erase)
        img[:, r : r + self.erase, c : c + self.erase] = 0
        return img


class Digits(Dataset):
    def __init__(self, x, y, augment=None):
        self.x, self.y, self.augment = x, y, augment

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        x = self.x[i].clone()
        return (self.augment(x) if self.augment else x), self.y[i]


def make_net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def run(seed, mended):
    random.seed(seed)
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x).float().view(-1, 1, 8, 8) / 16, torch.tensor(y)
    idx = torch.randperm(len(y))
    tr, va = idx[:1000], idx[1000:]
    augment = (
        Augment(erase=2, turns=False, flip=False, noise=0.05)
        if mended
        else Augment(erase=6, turns=True, flip=True, noise=0.4)
    )
    train_dl = DataLoader(Digits(x[tr], y[tr], augment), batch_size=50, shuffle=True)
    val_dl = DataLoader(Digits(x[va], y[va]), batch_size=400)

    model = make_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_fn = nn.CrossEntropyLoss()
    monitor = Monitor(model, optimizer)
    for epoch in range(12):
        model.train()
        tl = 0
        for xb, yb in train_dl:
            optimizer.zero_grad()
            loss = loss_fn(model(xb), yb)
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            tl += loss.item()
        model.eval()
        vl, hits = 0, 0
        with torch.no_grad():
            for xb, yb in val_dl:
                out = model(xb)
                vl += loss_fn(out, yb).item()
                hits += (out.argmax(1) == yb).sum().item()
        acc = hits / len(va)
        monitor.validated(epoch, {"train/loss": tl / len(train_dl)}, loss=vl / len(val_dl), accuracy=acc)
    return acc, monitor
