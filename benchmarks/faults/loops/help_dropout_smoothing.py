import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(48 * 16, 96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, 10)
        )

    def forward(self, x):
        return self.head(self.features(x))


def shifted(x):
    dx, dy = torch.randint(-1, 2, (2,)).tolist()
    return x.roll((dx, dy), (2, 3)) + 0.15 * torch.randn_like(x)


def run(seed, mended):
    torch.manual_seed(seed)
    bunch = load_digits()
    x, y = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None], torch.tensor(bunch.target)
    order = torch.randperm(len(x))
    xv, yv = x[order[1300:]], y[order[1300:]]
    loader = DataLoader(TensorDataset(x[order[:1300]], y[order[:1300]]), batch_size=32, shuffle=True)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    monitor = Monitor(model, optimizer)
    for epoch in range(19):
        model.train()
        total, right = 0.0, 0
        for xb, yb in loader:
            xb = shifted(xb)
            out = model(xb)
            loss = criterion(out, yb)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=xb, targets=yb, outputs=out)
            optimizer.step()
            total += loss.item() * len(yb)
            right += (out.argmax(1) == yb).sum().item()
        model.eval()
        with torch.no_grad():
            out = model(xv)
        accuracy = (out.argmax(1) == yv).float().mean().item()
        monitor.validated(
            epoch,
            {"train/loss": total / 1300, "train/accuracy": right / 1300},
            loss=criterion(out, yv).item(),
            accuracy=accuracy,
        )
    return accuracy, monitor
