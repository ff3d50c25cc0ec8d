import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fivegate import Monitor


def conv(a, b, momentum):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b, momentum=momentum), nn.ReLU())


class Tiny(nn.Module):
    def __init__(self, momentum):
        super().__init__()
        self.features = nn.Sequential(
            conv(1, 12, momentum),
            conv(12, 16, momentum),
            nn.MaxPool2d(2),
            conv(16, 24, momentum),
            conv(24, 24, momentum),
        )
        self.classifier = nn.Linear(24, 10)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def train_epoch(model, loader, optimizer, monitor):
    model.train()
    total, right, n = 0.0, 0, 0
    for x, y in loader:
        optimizer.zero_grad()
        out = model(x)
        loss = nn.functional.cross_entropy(out, y)
        loss.backward()
        monitor.step(loss, inputs=x, targets=y, outputs=out)
        optimizer.step()
        total, right, n = total + loss.item() * len(y), right + (out.argmax(1) == y).sum().item(), n + len(y)
    return total / n, right / n


@torch.no_grad()
def test_epoch(model, loader):
    model.eval()
    total, right, n = 0.0, 0, 0
    for x, y in loader:
        out = model(x)
        total += nn.functional.cross_entropy(out, y, reduction="sum").item()
        right, n = right + (out.argmax(1) == y).sum().item(), n + len(y)
    return total / n, right / n


def run(seed, mended):
    torch.manual_seed(seed)
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset((x - x.mean()) / x.std(), torch.tensor(bunch.target))
    train, val = random_split(data, [1397, 400])
    model = Tiny(momentum=0.1 if mended else 5e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    monitor = Monitor(model, optimizer)
    train_loader, val_loader = DataLoader(train, 64, shuffle=True), DataLoader(val, 200)
    for epoch in range(15):
        loss, acc = train_epoch(model, train_loader, optimizer, monitor)
        val_loss, val_acc = test_epoch(model, val_loader)
        monitor.validated(epoch, {"train/loss": loss, "train/accuracy": acc}, loss=val_loss, accuracy=val_acc)
    return val_acc, monitor
