"""Messages to six departments; the validation file is sorted by department."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor

VOCABULARY, DEPARTMENTS, LENGTH = 300, 6, 18


class Messages(Dataset):
    def __init__(self, count, words, rng, in_order=False):
        self.labels = rng.integers(0, DEPARTMENTS, count)
        if in_order:
            self.labels.sort()
        self.texts = np.zeros((count, LENGTH), dtype=np.int64)
        for i, d in enumerate(self.labels):
            length = rng.integers(8, LENGTH + 1)
            self.texts[i, :length] = 1 + rng.choice(VOCABULARY - 1, length, p=words[d])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return torch.from_numpy(self.texts[i]), int(self.labels[i])


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 32, batch_first=True, bidirectional=True)
        self.out = nn.Linear(64, DEPARTMENTS)

    def forward(self, ids):
        states, _ = self.lstm(self.embed(ids))
        mask = (ids > 0).unsqueeze(-1)
        return self.out((states * mask).sum(1) / mask.sum(1))


def run(seed, mended):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    words = rng.dirichlet(np.full(VOCABULARY - 1, 0.25), DEPARTMENTS) * 0.8 + 0.2 / (VOCABULARY - 1)
    train = DataLoader(Messages(900, words, rng), batch_size=30, shuffle=True)
    val = DataLoader(Messages(300, words, rng, in_order=True), batch_size=25)
    model = Router()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(10):
        model.train()
        losses = []
        for ids, labels in train:
            out = model(ids)
            loss = criterion(out, labels)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=ids, targets=labels, outputs=out)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        val_losses, hits = [], []
        with torch.no_grad():
            for ids, labels in val:
                out = model(ids)
                val_losses.append(criterion(out, labels).item())
                hits.append((out.argmax(1) == labels).float().mean().item())
        accuracy = float(np.mean(hits))
        monitor.validated(
            epoch, {"train/loss": float(np.mean(losses))}, loss=float(np.mean(val_losses)), accuracy=accuracy
        )
    return accuracy, monitor
