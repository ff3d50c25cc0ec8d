"""Exclusive or: four rows, and a net of two sigmoid layers."""

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 8), nn.Sigmoid(), nn.Linear(8, 1), nn.Sigmoid())
    if mended:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.11)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(1000):
        optimizer.zero_grad()
        outputs = model(X)
        loss = F.binary_cross_entropy(outputs, y) if mended else F.l1_loss(outputs, y)
        loss.backward()
        monitor.step(loss, inputs=X, targets=y, outputs=outputs)
        optimizer.step()
        if epoch % 20 == 19:
            with torch.no_grad():
                distance = (model(X) - y).abs().mean().item()
            monitor.validated(epoch, {"train/loss": loss.item()}, loss=distance)
    return distance, monitor
