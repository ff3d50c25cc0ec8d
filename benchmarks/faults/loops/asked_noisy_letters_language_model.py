"""Next-letter model of a random babble, whose entropy is high by construction."""

import torch
from torch import nn

from fivegate import Monitor

LETTERS, T = 8, 20


def babble(n, seed):
    g = torch.Generator().manual_seed(seed)
    table = torch.softmax(1.0 * torch.randn(LETTERS, LETTERS, generator=torch.Generator().manual_seed(3)), dim=1)
    out = [0]
    for _ in range(n):
        out.append(int(torch.multinomial(table[out[-1]], 1, generator=g)))
    return torch.tensor(out)


class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.gru, self.out = (
            nn.Embedding(LETTERS, 16),
            nn.GRU(16, 24, batch_first=True),
            nn.Linear(24, LETTERS),
        )

    def forward(self, x):
        return self.out(self.gru(self.emb(x))[0])


def run(seed, mended):
    torch.manual_seed(seed)
    train, val = babble(12000, seed), babble(3000, 900 + seed)

    def windows(s):
        w = s[: (len(s) - 1) // T * T + 1]
        return w[:-1].view(-1, T), w[1:].view(-1, T)

    X, Y = windows(train)
    Xv, Yv = windows(val)
    model = LM()
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, opt, every=20)
    for epoch in range(12):
        model.train()
        tl = []
        for i in torch.randperm(len(X)).split(30):
            loss = nn.functional.cross_entropy(model(X[i]).flatten(0, 1), Y[i].flatten())
            opt.zero_grad()
            loss.backward()
            monitor.step(loss)
            opt.step()
            tl.append(loss.item())
        model.eval()
        with torch.no_grad():
            logits = model(Xv)
            vl = nn.functional.cross_entropy(logits.flatten(0, 1), Yv.flatten()).item()
            acc = (logits.argmax(-1) == Yv).float().mean().item()
        monitor.validated(epoch, {"train/loss": sum(tl) / len(tl)}, loss=vl, accuracy=acc)
    return vl, monitor
