import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def get_loaders(seed):
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16.0
    labels = torch.tensor(labels)
    train_idx, val_idx = train_test_split(range(len(labels)), test_size=0.3, random_state=seed, stratify=labels)
    train = TensorDataset(images[train_idx], labels[train_idx])
    val = TensorDataset(images[val_idx], labels[val_idx])
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=256)


@torch.no_grad()
def evaluate(model, loader, criterion):
    model.eval()
    loss, correct, n = 0.0, 0, 0
    for x, y in loader:
        out = model(x)
        loss += criterion(out, y).item() * len(y)
        correct += (out.argmax(1) == y).sum().item()
        n += len(y)
    return loss / n, correct / n


def run(seed, mended):
    torch.manual_seed(seed)
    train_loader, val_loader = get_loaders(seed)
    model = Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = Monitor(model, optimizer)
    for epoch in range(15):
        model.train()
        optimizer.zero_grad()
        running = 0.0
        for x, y in train_loader:
            if mended:
                optimizer.zero_grad()
            output = model(x)
            loss = criterion(output, y)
            loss.backward()
            monitor.step(loss, inputs=x, targets=y, outputs=output)
            optimizer.step()
            running += loss.item()
        val_loss, val_acc = evaluate(model, val_loader, criterion)
        monitor.validated(epoch, {"train/loss": running / len(train_loader)}, loss=val_loss, accuracy=val_acc)
    return val_acc, monitor
