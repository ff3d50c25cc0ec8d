import torch
import torch.nn as nn
from sklearn.datasets import load_digits

from fivegate import Monitor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.classifier(self.features(x))


def run(seed, mended):
    torch.manual_seed(seed)
    digits = load_digits()
    X = torch.tensor(digits.images / 8.0 - 1.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(digits.target)
    perm = torch.randperm(len(y))
    train, test = perm[:1300], perm[1300:]
    net = Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3 if mended else 5e-2)
    monitor = Monitor(net, optimizer)
    for epoch in range(10):
        net.train()
        running_loss = 0.0
        for i in range(0, 1300, 50):
            rows = train[i : i + 50]
            optimizer.zero_grad()
            outputs = net(X[rows])
            loss = criterion(outputs, y[rows])
            loss.backward()
            monitor.step(loss, outputs=outputs)
            optimizer.step()
            running_loss += loss.item()
        train = train[torch.randperm(1300)]
        net.eval()
        with torch.no_grad():
            outputs = net(X[test])
            test_loss = criterion(outputs, y[test]).item()
            accuracy = (outputs.argmax(1) == y[test]).float().mean().item()
        monitor.validated(epoch, {"train/loss": running_loss / 26}, loss=test_loss, accuracy=accuracy)
    return accuracy, monitor
