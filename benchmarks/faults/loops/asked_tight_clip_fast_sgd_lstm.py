"""LSTM language classifier, trained by fast SGD with a firm gradient clip as in the old language models."""

import random

import torch
from torch import nn

from fivegate import Monitor

ENGLISH = "the and of that with this have from they would there what about which when people into just your some"
GERMAN = "und der die das nicht mit sich auch auf eine wird noch nach durch wenn aber schon zwischen immer dieser"
ABC = " abcdefghijklmnopqrstuvwxyz"


def snippets(n, rng):
    xs, ys = [], []
    for _ in range(n):
        k = rng.randrange(2)
        words = (ENGLISH, GERMAN)[k].split()
        s = " ".join(rng.choice(words) for _ in range(5))[:20].ljust(20)
        s = "".join(c if rng.random() > 0.12 else rng.choice(ABC) for c in s)
        xs.append([ABC.index(c) for c in s])
        ys.append(k)
    return torch.tensor(xs), torch.tensor(ys)


class LangId(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(27, 24)
        self.lstm = nn.LSTM(24, 40, batch_first=True)
        self.fc = nn.Linear(40, 2)

    def forward(self, x):
        out, _ = self.lstm(self.emb(x))
        return self.fc(out.mean(dim=1))


def run(seed, mended):
    torch.manual_seed(seed)
    rng = random.Random(seed)
    X, y = snippets(900, rng)
    Xv, yv = snippets(300, rng)
    model = LangId()
    opt = torch.optim.SGD(model.parameters(), lr=4.0)
    monitor = Monitor(model, opt, every=10)
    for epoch in range(14):
        model.train()
        s = 0.0
        for idx in torch.randperm(len(X)).split(30):
            opt.zero_grad()
            logits = model(X[idx])
            loss = nn.functional.cross_entropy(logits, y[idx])
            loss.backward()
            monitor.step(loss, inputs=X[idx], targets=y[idx], outputs=logits)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            opt.step()
            s += loss.item() * len(idx)
        model.eval()
        with torch.no_grad():
            logits = model(Xv)
            vl = nn.functional.cross_entropy(logits, yv).item()
            acc = (logits.argmax(1) == yv).float().mean().item()
        monitor.validated(epoch, {"train/loss": s / len(X)}, loss=vl, accuracy=acc)
    return acc, monitor
