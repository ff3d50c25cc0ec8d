import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


class WideNet(nn.Module):
    def __init__(self, width=512, p=0.8):
        super().__init__()
        self.fc1 = nn.Linear(64, width)
        self.drop = nn.Dropout(p)
        self.fc2 = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc2(self.drop(torch.relu(self.fc1(x))))


def run(seed, mended):
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    xt, xv, yt, yv = train_test_split(x / 16.0, y, test_size=0.3, random_state=seed, stratify=y)
    xt, xv = torch.tensor(xt).float(), torch.tensor(xv).float()
    yt, yv = torch.tensor(yt), torch.tensor(yv)
    loader = DataLoader(TensorDataset(xt, yt), batch_size=32, shuffle=True)
    model = WideNet()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(20):
        model.train()
        total = 0.0
        for xb, yb in loader:
            optimizer.zero_grad()
            out = model(xb)
            loss = criterion(out, yb)
            loss.backward()
            monitor.step(loss, inputs=xb, targets=yb, outputs=out)
            optimizer.step()
            total += loss.item() * len(xb)
        model.eval()
        with torch.no_grad():
            out = model(xv)
            acc = (out.argmax(1) == yv).float().mean().item()
            vloss = criterion(out, yv).item()
        monitor.validated(epoch, {"train/loss": total / len(xt)}, loss=vloss, accuracy=acc)
    return acc, monitor
