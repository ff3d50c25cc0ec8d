import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset, TensorDataset

from fivegate import Monitor


class LeNetish(nn.Module):
    def __init__(self, mended):
        super().__init__()
        self.mended = mended
        self.conv1 = nn.Conv2d(1, 12, kernel_size=3)
        self.conv2 = nn.Conv2d(12, 24, kernel_size=3)
        self.fc1 = nn.Linear(24 * 4 * 4, 96)
        self.fc2 = nn.Linear(96, 10)

    def drop(self, x, p):
        if self.mended:
            return F.dropout(x, p, training=self.training)
        return F.dropout(x, p)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.drop(torch.flatten(x, 1), 0.65)
        x = self.drop(F.relu(self.fc1(x)), 0.65)
        return F.log_softmax(self.fc2(x), dim=1)


def train(model, device, train_loader, optimizer, monitor):
    model.train()
    total = 0.0
    for data, target in train_loader:
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        output = model(data)
        loss = F.nll_loss(output, target)
        loss.backward()
        monitor.step(loss)
        optimizer.step()
        total += loss.item()
    return total / len(train_loader)


def test(model, device, test_loader):
    model.eval()
    test_loss, correct = 0, 0
    with torch.no_grad():
        for data, target in test_loader:
            data, target = data.to(device), target.to(device)
            output = model(data)
            test_loss += F.nll_loss(output, target, reduction="sum").item()
            correct += output.argmax(dim=1).eq(target).sum().item()
    return test_loss / len(test_loader.dataset), correct / len(test_loader.dataset)


def run(seed, mended):
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    everything = TensorDataset(torch.tensor(x).float().view(-1, 1, 8, 8) / 16, torch.tensor(y))
    order = torch.randperm(len(y)).tolist()
    train_loader = DataLoader(Subset(everything, order[:1300]), batch_size=64, shuffle=True)
    test_loader = DataLoader(Subset(everything, order[1300:]), batch_size=500)
    device = torch.device("cpu")
    model = LeNetish(mended).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(14):
        train_loss = train(model, device, train_loader, optimizer, monitor)
        test_loss, acc = test(model, device, test_loader)
        monitor.validated(epoch, {"train/loss": train_loss}, loss=test_loss, accuracy=acc)
    return acc, monitor
