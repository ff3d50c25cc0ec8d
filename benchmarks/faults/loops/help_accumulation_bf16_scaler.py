"""Micro-batches of 16, windows of four, mixed precision with a loss scaler."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from fivegate import Monitor


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
    perm = torch.randperm(len(y))
    train, val = perm[:1280], perm[1280:]
    model = nn.Sequential(
        nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=50)
    criterion = nn.CrossEntropyLoss()
    monitor = Monitor(model, optimizer)
    window = 4
    for epoch in range(15):
        model.train()
        total = 0.0
        for i, rows in enumerate(train[torch.randperm(1280)].split(16)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = criterion(model(X[rows]), y[rows])
            scaler.scale(loss / window).backward()
            total += loss.item() / 80
            monitor.step(loss)
            if (i + 1) % window == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(X[val]).float()
        accuracy = (out.argmax(1) == y[val]).float().mean().item()
        monitor.validated(epoch, {"train/loss": total}, loss=criterion(out, y[val]).item(), accuracy=accuracy)
    return accuracy, monitor
