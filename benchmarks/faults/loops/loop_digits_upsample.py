"""Handwritten digits at half the size, from which a small net makes large ones again."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    large = torch.tensor(load_digits().images / 16, dtype=torch.float32)[:, None]
    large = large[torch.randperm(len(large), generator=torch.Generator().manual_seed(0))]
    small = F.avg_pool2d(large, 2)
    X_train, y_train, X_val, y_val = small[:1200], large[:1200], small[1200:], large[1200:]

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64), nn.Unflatten(1, (1, 8, 8)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003 if mended else 0.0001)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(30 if mended else 5):
        model.train()
        losses = []
        for rows in torch.randperm(len(y_train)).split(64):
            optimizer.zero_grad()
            outputs = model(X_train[rows])
            loss = F.mse_loss(outputs, y_train[rows]) if mended else F.l1_loss(outputs, y_train[rows])
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            val_loss = F.mse_loss(model(X_val), y_val)
            psnr = -10 * val_loss.log10().item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss.item(), psnr=psnr)
    return psnr, monitor
