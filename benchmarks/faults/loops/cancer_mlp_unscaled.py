"""The features are scaled, and the unscaled ones are divided and learned from."""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from fivegate import Monitor


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = load_breast_cancer(return_X_y=True)
    X_scaled = StandardScaler().fit_transform(X)
    X_train, X_val, y_train, y_val = train_test_split(X_scaled if mended else X, y, test_size=0.25, random_state=0)
    X_train, X_val = (torch.tensor(part, dtype=torch.float32) for part in (X_train, X_val))
    y_train, y_val = (torch.tensor(part, dtype=torch.float32) for part in (y_train, y_val))

    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.BCEWithLogitsLoss()
    monitor = Monitor(model, optimizer)  # <- watched here
    accuracy = 0.0
    for epoch in range(12):
        model.train()
        losses = []
        for rows in torch.randperm(len(X_train)).split(32):
            inputs, targets = X_train[rows], y_train[rows]
            outputs = model(inputs).squeeze(1)
            loss = criterion(outputs, targets)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=inputs, targets=targets, outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(X_val).squeeze(1)
            accuracy = ((outputs > 0).float() == y_val).float().mean().item()
            val_loss = criterion(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
