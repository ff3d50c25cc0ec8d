"""A net that knows a wave; a new head learns another one, and the old head shall go on working."""

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    draw = torch.Generator().manual_seed(0)
    X = torch.rand(500, 1, generator=draw) * 6 - 3
    first, second = torch.sin(2 * X), torch.sin(2 * X) + 0.5 * X
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
    head = nn.Linear(48, 1)
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        F.mse_loss(head(trunk(X)), first).backward()
        optimizer.step()

    for p in trunk.parameters():
        p.requires_grad = not mended
    model = nn.Sequential(trunk, nn.Linear(48, 1))
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=0.02)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(40):
        for rows in torch.randperm(350).split(32):
            optimizer.zero_grad()
            outputs = model(X[rows])
            loss = F.mse_loss(outputs, second[rows])
            loss.backward()
            monitor.step(loss, inputs=X[rows], targets=second[rows], outputs=outputs)
            optimizer.step()
        with torch.no_grad():
            val_loss = F.mse_loss(model(X[350:]), second[350:]).item()
            old_loss = F.mse_loss(head(trunk(X[350:])), first[350:]).item()
        monitor.validated(epoch, {"train/loss": loss.item(), "val/loss_first": old_loss}, loss=val_loss)
    return max(val_loss, old_loss) ** 0.5, monitor
