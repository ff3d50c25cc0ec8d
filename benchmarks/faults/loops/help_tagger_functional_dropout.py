"""Tags of short articles from counts of words; an article may have several of eight tags."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import nn

from fivegate import Monitor

WORDS, TAGS = 120, 8


def articles(count, topics, rng):
    tags = rng.random((count, TAGS)) < 0.3
    rates = 0.15 + tags @ topics
    counts = rng.poisson(rates)
    return torch.tensor(np.log1p(counts), dtype=torch.float32), torch.tensor(tags, dtype=torch.float32)


class Tagger(nn.Module):
    def __init__(self, aware):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(WORDS, 96), nn.Linear(96, 64), nn.Linear(64, TAGS)
        self.aware = aware

    def drop(self, h):
        return F.dropout(h, 0.5, training=self.training) if self.aware else F.dropout(h, 0.5)

    def forward(self, x):
        x = self.drop(F.relu(self.fc1(x)))
        x = self.drop(F.relu(self.fc2(x)))
        return self.fc3(x)


def run(seed, mended):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    topics = (rng.random((TAGS, WORDS)) < 0.12) * rng.uniform(0.3, 1.4, (TAGS, WORDS))
    x, y = articles(1000, topics, rng)
    xv, yv = articles(400, topics, rng)
    model = Tagger(aware=mended)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(20):
        model.train()
        losses = []
        for rows in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(x[rows]), y[rows])
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            logits = model(xv)
        f1 = f1_score(yv.numpy(), (logits > 0).numpy(), average="micro")
        monitor.validated(
            epoch,
            {"train/loss": sum(losses) / len(losses)},
            loss=F.binary_cross_entropy_with_logits(logits, yv).item(),
            f1=f1,
        )
    return f1, monitor
