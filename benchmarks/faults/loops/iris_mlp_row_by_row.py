"""One row at a time with plain SGD: the loss jumps, and the training is well."""

import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from fivegate import Monitor


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = load_iris(return_X_y=True)
    X_train, X_val, y_train, y_val = train_test_split(X, y, test_size=0.3, stratify=y, random_state=1)
    scaler = StandardScaler().fit(X_train)
    X_train, X_val = (torch.tensor(scaler.transform(part), dtype=torch.float32) for part in (X_train, X_val))
    y_train, y_val = torch.tensor(y_train), torch.tensor(y_val)

    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    criterion = nn.CrossEntropyLoss()
    monitor = Monitor(model, optimizer)  # <- watched here
    accuracy = 0.0
    for epoch in range(8):
        model.train()
        losses = []
        for row in torch.randperm(len(X_train)).split(1):
            outputs = model(X_train[row])
            loss = criterion(outputs, y_train[row])
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=X_train[row], targets=y_train[row], outputs=outputs)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            outputs = model(X_val)
            accuracy = (outputs.argmax(1) == y_val).float().mean().item()
            val_loss = criterion(outputs, y_val).item()
        monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
