import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(48)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        return nn.functional.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2).flatten(1)


class Probe(nn.Module):
    def __init__(self, backbone, classes):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Linear(48 * 4, classes)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x):
        return self.head(self.backbone(x))


def pretrain_on(x, y):
    backbone, head = Backbone(), nn.Linear(48 * 4, 6)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=5e-3)
    for _ in range(4):
        for xb, yb in DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(backbone(xb)), yb).backward()
            optimizer.step()
    return backbone


def run(seed, mended):
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x).float().view(-1, 1, 8, 8) / 16, torch.tensor(y)
    backbone = pretrain_on(x[y < 6], y[y < 6])
    x, y = x[y >= 6], y[y >= 6] - 6
    order = torch.randperm(len(y))
    train, val = order[:400], order[400:]

    model = Probe(backbone, classes=4)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss()
    monitor = Monitor(model, optimizer)
    loader = DataLoader(TensorDataset(x[train], y[train]), batch_size=16, shuffle=True)
    for epoch in range(15):
        model.train()
        train_loss = 0.0
        for xb, yb in loader:
            optimizer.zero_grad()
            loss = criterion(model(xb), yb)
            loss.backward()
            monitor.step(loss, inputs=xb, targets=yb)
            optimizer.step()
            train_loss += loss.item() / len(loader)
        model.eval()
        with torch.no_grad():
            out = model(x[val])
            val_loss = criterion(out, y[val]).item()
            acc = (out.argmax(1) == y[val]).float().mean().item()
        monitor.validated(epoch, {"train/loss": train_loss}, loss=val_loss, accuracy=acc)
    return acc, monitor
