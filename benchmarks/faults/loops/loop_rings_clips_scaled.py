"""Three rings; the loss is scaled up, and the gradient is clipped before it is scaled down again."""

import torch
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def rings():
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (900,), generator=draw)
    angle = 6.2832 * torch.rand(900, generator=draw)
    radius = 0.5 + y + 0.18 * torch.randn(900, generator=draw)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


SCALE = 2.0**16  # of the loss, as a scaler for half precision has it


def unscale(model):
    for parameter in model.parameters():
        parameter.grad /= SCALE


def run(seed, mended):
    X, y = rings()
    X_train, y_train, X_val, y_val = X[:600], y[:600], X[600:], y[600:]

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(0, 30):
        losses = []
        for rows in torch.randperm(len(y_train)).split(32):
            optimizer.zero_grad()
            outputs = model(X_train[rows])
            loss = F.cross_entropy(outputs, y_train[rows])
            (loss * SCALE).backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            if mended:
                unscale(model)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                unscale(model)
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = F.cross_entropy(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
