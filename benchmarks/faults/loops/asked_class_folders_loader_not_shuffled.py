import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


class FolderLikeDataset(Dataset):
    def __init__(self, images, labels):
        self.samples = []
        for klass in sorted(set(labels.tolist())):
            for image in images[labels == klass]:
                self.samples.append((image, klass))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        image, klass = self.samples[index]
        return torch.as_tensor(image, dtype=torch.float32).view(1, 8, 8).div(16).sub(0.3).div(0.37), klass


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x):
        out = self.layer2(self.layer1(x))
        return self.fc(out.reshape(out.size(0), -1))


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = load_digits(return_X_y=True)
    X_train, X_val, y_train, y_val = train_test_split(X, y, test_size=0.25, random_state=seed, stratify=y)
    params = {"batch_size": 32, "shuffle": mended}
    train_loader = DataLoader(FolderLikeDataset(X_train, y_train), **params)
    val_loader = DataLoader(FolderLikeDataset(X_val, y_val), batch_size=100)

    model = ConvNet()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = Monitor(model, optimizer)
    for epoch in range(12):
        model.train()
        running_loss = 0.0
        for images, labels in train_loader:
            outputs = model(images)
            loss = criterion(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            monitor.step(loss)
            optimizer.step()
            running_loss += loss.item()
        model.eval()
        val_loss = correct = total = 0
        with torch.no_grad():
            for images, labels in val_loader:
                outputs = model(images)
                val_loss += criterion(outputs, labels).item() * labels.size(0)
                correct += (outputs.max(1)[1] == labels).sum().item()
                total += labels.size(0)
        acc = correct / total
        monitor.validated(epoch, {"train/loss": running_loss / len(train_loader)}, loss=val_loss / total, accuracy=acc)
    return acc, monitor
