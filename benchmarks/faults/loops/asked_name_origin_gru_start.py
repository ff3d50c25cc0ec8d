"""Classify made-up names by their origin, one character at a time."""

import random

import torch
from torch import nn

from fivegate import Monitor

SYLLABLES = {
    "north": ["bjor", "sven", "gar", "thor", "ulf", "rik", "hal", "dis"],
    "south": ["mar", "gio", "lla", "ris", "tano", "belle", "zio", "ca"],
    "east": ["xia", "wen", "zhu", "lin", "qin", "mei", "jun", "tao"],
    "isles": ["kea", "lani", "moa", "nalu", "pua", "wai", "hoku", "ala"],
}
ORIGINS = list(SYLLABLES)
ALPHABET = " abcdefghijklmnopqrstuvwxyz"
LENGTH = 12


def names(count, rng):
    rows, labels = [], []
    for _ in range(count):
        k = rng.randrange(len(ORIGINS))
        pool = SYLLABLES[ORIGINS[k]] + SYLLABLES[ORIGINS[k]] + ["an", "el", "ra"]
        word = "".join(rng.choice(pool) for _ in range(rng.choice([2, 3])))[:LENGTH]
        rows.append([ALPHABET.index(c) for c in word.rjust(LENGTH)])
        labels.append(k)
    return torch.tensor(rows), torch.tensor(labels)


class NameRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), 16)
        self.rnn = nn.GRU(16, 32, batch_first=True)
        self.out = nn.Linear(32, len(ORIGINS))

    def init_weights(self):
        for name, p in self.named_parameters():
            nn.init.zeros_(p)

    def forward(self, x):
        _, h = self.rnn(self.embedding(x))
        return self.out(h.squeeze(0))


def run(seed, mended):
    torch.manual_seed(seed)
    rng = random.Random(seed)
    X, y = names(800, rng)
    Xv, yv = names(300, rng)
    model = NameRNN()
    if not mended:
        model.init_weights()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, optimizer, every=20)
    for epoch in range(14):
        model.train()
        perm, seen = torch.randperm(len(X)), 0.0
        for start in range(0, len(X), 32):
            idx = perm[start : start + 32]
            logits = model(X[idx])
            loss = loss_fn(logits, y[idx])
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=X[idx], targets=y[idx], outputs=logits)
            optimizer.step()
            seen += loss.item() * len(idx)
        model.eval()
        with torch.no_grad():
            logits = model(Xv)
            acc = (logits.argmax(1) == yv).float().mean().item()
            vl = loss_fn(logits, yv).item()
        monitor.validated(epoch, {"train/loss": seen / len(X)}, loss=vl, accuracy=acc)
    return acc, monitor
