"""A plane over half of forty columns, whose rows are drawn by workers as they are asked for."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


class Drawn(Dataset):
    """Rows out of a formula, anew at every read."""

    def __init__(self, seed):
        self.draw = np.random.default_rng(seed)

    def __len__(self):
        return 128

    def __getitem__(self, row):
        x = self.draw.normal(size=40).astype(np.float32)
        return x, np.float32(x[:20].mean() * 4.5 + 0.3 * self.draw.normal())


def seeded(worker):
    torch.utils.data.get_worker_info().dataset.draw = np.random.default_rng(torch.initial_seed() % 2**32)


def run(seed, mended):
    held_out = Drawn(999)
    X_val, y_val = (torch.tensor(np.array(part)) for part in zip(*(held_out[i] for i in range(300)), strict=True))

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer)  # <- watched here
    loader = DataLoader(Drawn(seed), batch_size=16, num_workers=2, worker_init_fn=seeded if mended else None)

    for epoch in range(10):
        for inputs, targets in loader:
            optimizer.zero_grad()
            outputs = model(inputs)[:, 0]
            loss = F.mse_loss(outputs, targets)
            loss.backward()
            monitor.step(loss, inputs=inputs, targets=targets, outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            val_loss = F.mse_loss(model(X_val)[:, 0], y_val).item()
        monitor.validated(epoch, {"train/loss": loss.item()}, loss=val_loss)
    return val_loss**0.5, monitor
