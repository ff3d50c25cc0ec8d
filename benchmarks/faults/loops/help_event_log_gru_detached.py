"""Event logs of five kinds of user, each a first-order Markov chain over 12 events."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fivegate import Monitor

EVENTS, KINDS, LENGTH = 12, 5, 20


def sample_logs(count, chains, rng):
    kind = rng.integers(0, KINDS, count)
    logs = np.zeros((count, LENGTH), dtype=np.int64)
    logs[:, 0] = rng.integers(0, EVENTS, count)
    for t in range(1, LENGTH):
        rows = chains[kind, logs[:, t - 1]].cumsum(1)
        logs[:, t] = (rng.random((count, 1)) > rows).sum(1).clip(max=EVENTS - 1)
    return torch.from_numpy(logs), torch.from_numpy(kind)


class LogClassifier(nn.Module):
    def __init__(self, cut_graph):
        super().__init__()
        self.embedding = nn.Embedding(EVENTS, 16)
        self.gru = nn.GRU(16, 48, batch_first=True)
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, KINDS))
        self.cut_graph = cut_graph

    def forward(self, logs):
        _, hidden = self.gru(self.embedding(logs))
        hidden = hidden.detach() if self.cut_graph else hidden
        return self.head(hidden[-1])


def run(seed, mended):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed + 20)
    chains = rng.dirichlet(np.full(EVENTS, 0.35), (KINDS, EVENTS))
    logs, kind = sample_logs(1200, chains, rng)
    logs_v, kind_v = sample_logs(400, chains, rng)
    net = LogClassifier(cut_graph=not mended)
    opt = torch.optim.Adam(net.parameters(), lr=4e-3)
    monitor = Monitor(net, opt)
    for epoch in range(15):
        net.train()
        loss_sum, right = 0.0, 0
        order = torch.randperm(len(logs))
        for start in range(0, len(order), 50):
            rows = order[start : start + 50]
            opt.zero_grad()
            scores = net(logs[rows])
            loss = F.cross_entropy(scores, kind[rows])
            loss.backward()
            monitor.step(loss)
            opt.step()
            loss_sum += loss.item() * len(rows)
            right += (scores.argmax(1) == kind[rows]).sum().item()
        net.eval()
        with torch.no_grad():
            scores = net(logs_v)
        accuracy = (scores.argmax(1) == kind_v).float().mean().item()
        monitor.validated(
            epoch,
            {"train/loss": loss_sum / len(logs), "train/accuracy": right / len(logs)},
            loss=F.cross_entropy(scores, kind_v).item(),
            accuracy=accuracy,
        )
    return accuracy, monitor
