"""A plain ReLU RNN (identity start, after Le et al.) that adds up a sequence of steps, forward and back."""

import torch
import torch.nn as nn

from fivegate import Monitor

T = 50


def batch(n, g):
    steps = torch.randn(n, T, 2, generator=g)
    return steps, (steps[..., 0] + 0.5 * steps[..., 1]).sum(1, keepdim=True) / 8.0


class IRNN(nn.Module):
    def __init__(self, hidden=48):
        super().__init__()
        self.rnn = nn.RNN(2, hidden, nonlinearity="relu", batch_first=True)
        nn.init.eye_(self.rnn.weight_hh_l0)
        nn.init.normal_(self.rnn.weight_ih_l0, std=0.05)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.head(out[:, -1])


def run(seed, mended):
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    X, y = batch(1200, g)
    Xv, yv = batch(300, g)
    model = IRNN()
    opt = torch.optim.SGD(model.parameters(), lr=0.02)
    monitor = Monitor(model, opt, every=10)
    for epoch in range(14):
        model.train()
        total = 0.0
        for idx in torch.randperm(len(X)).split(30):
            opt.zero_grad()
            loss = nn.functional.mse_loss(model(X[idx]), y[idx])
            loss.backward()
            monitor.step(loss)
            if mended:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            opt.step()
            total += loss.item() * len(idx) / len(X)
        model.eval()
        with torch.no_grad():
            mse = nn.functional.mse_loss(model(Xv), yv).item()
            r2 = 1 - mse / yv.var(unbiased=False).item()
        monitor.validated(epoch, {"train/loss": total}, loss=mse, r2=r2)
    return r2, monitor
