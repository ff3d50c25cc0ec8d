"""Two moons, one of them nearly gone, and its rows weighted by as much."""

import torch
from sklearn.datasets import make_moons
from torch import nn
from torch.nn import functional as F

from fivegate import Monitor


def run(seed, mended):
    X, y = make_moons(600, noise=0.2, random_state=0)
    X, y = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    X_train, y_train, X_val, y_val = X[:400], y[:400], X[400:], y[400:]
    selected_rows = (y_train == 0) | (torch.arange(400) < 60)
    X_train, y_train = X_train[selected_rows], y_train[selected_rows]
    weight = (y_train == 0).sum() / (y_train == 1).sum()

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer)  # <- watched here

    for epoch in range(30):
        model.train()
        losses = []
        for rows in torch.randperm(len(y_train)).split(32):
            optimizer.zero_grad()
            outputs = model(X_train[rows])[:, 0]
            loss = F.binary_cross_entropy_with_logits(outputs, y_train[rows], pos_weight=weight)
            loss.backward()
            monitor.step(loss, inputs=X_train[rows], targets=y_train[rows], outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(X_val)[:, 0]
            accuracy = ((outputs > 0) == (y_val > 0)).float().mean().item()
            val_loss = F.binary_cross_entropy_with_logits(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
