"""Colour and shape of an object in a small picture: six classes."""

import numpy as np
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


def draw(rng):
    kind, colour = rng.integers(2), rng.integers(3)
    picture = rng.uniform(0, 90, (12, 12, 3))
    cx, cy, r = rng.integers(4, 8), rng.integers(4, 8), rng.integers(2, 4)
    yy, xx = np.mgrid[:12, :12]
    inside = (abs(xx - cx) <= r) & (abs(yy - cy) <= r) if kind == 0 else abs(xx - cx) + abs(yy - cy) <= r
    paint = rng.uniform(60, 140, 3)
    paint[colour] = rng.uniform(160, 255)
    picture[inside] = paint
    return picture.clip(0, 255).astype(np.uint8), 3 * kind + colour


def read_plain(picture):
    return picture


def read_fast(picture):
    return picture[:, :, ::-1].copy()


class Pictures(Dataset):
    def __init__(self, count, rng, reader):
        self.items = [draw(rng) for _ in range(count)]
        self.reader = reader

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        picture, label = self.items[i]
        picture = torch.from_numpy(self.reader(picture)).permute(2, 0, 1).float()
        return picture / 127.5 - 1, label


def run(seed, mended):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    train_set = Pictures(900, rng, read_plain)
    val_set = Pictures(300, rng, read_plain if mended else read_fast)
    train_loader = DataLoader(train_set, batch_size=30, shuffle=True)
    val_loader = DataLoader(val_set, batch_size=100)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 9, 48),
        nn.ReLU(),
        nn.Linear(48, 6),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    criterion = nn.CrossEntropyLoss()
    monitor = Monitor(model, optimizer)
    for epoch in range(14):
        model.train()
        running, hits = 0.0, 0
        for images, labels in train_loader:
            optimizer.zero_grad()
            logits = model(images)
            loss = criterion(logits, labels)
            loss.backward()
            monitor.step(loss, inputs=images, targets=labels, outputs=logits)
            optimizer.step()
            running += loss.item() * len(labels)
            hits += (logits.argmax(1) == labels).sum().item()
        model.eval()
        val_loss = val_hits = 0
        with torch.no_grad():
            for images, labels in val_loader:
                logits = model(images)
                val_loss += criterion(logits, labels).item() * len(labels)
                val_hits += (logits.argmax(1) == labels).sum().item()
        score = val_hits / len(val_set)
        n = len(train_set)
        monitor.validated(
            epoch, {"train/loss": running / n, "train/accuracy": hits / n}, loss=val_loss / len(val_set), accuracy=score
        )
    return score, monitor
