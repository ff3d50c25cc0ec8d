import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.utils.data import DataLoader, TensorDataset, random_split

from fivegate import Monitor


class MLP(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        layers = []
        for a, b in zip(sizes[:-1], sizes[1:]):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x):
        return self.layers(x)


def evaluate(model, x, y):
    model.eval()
    with torch.no_grad():
        out = model(x)
    return nn.functional.cross_entropy(out, y).item(), (out.argmax(1) == y).float().mean().item()


def run(seed, mended):
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset((torch.tensor(x).float() - 4.9) / 6.0, torch.tensor(y))
    train, val = random_split(data, [1297, 500])
    loader = DataLoader(train, batch_size=4, shuffle=True)
    model = MLP([64, 48, 10])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.08)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2, eta_min=1e-4)
    monitor = Monitor(model, optimizer)
    for epoch in range(14):
        model.train()
        seen = 0.0
        for i, (xb, yb) in enumerate(loader):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(xb), yb)
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            scheduler.step(epoch + (i + 1) / len(loader))
            seen += loss.item()
        val_loss, acc = evaluate(model, *val[:])
        monitor.validated(epoch, {"train/loss": seen / len(loader)}, loss=val_loss, accuracy=acc)
    return acc, monitor
