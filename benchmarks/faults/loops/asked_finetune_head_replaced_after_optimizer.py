import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


class SmallBackbone(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(128, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x))


def digits_of(classes, test_size, seed):
    x, y = load_digits(return_X_y=True)
    keep = (y >= classes[0]) & (y <= classes[1])
    x = torch.tensor(x[keep] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(y[keep] - classes[0])
    a, b = train_test_split(range(len(y)), test_size=test_size, random_state=seed)
    return TensorDataset(x[a], y[a]), TensorDataset(x[b], y[b])


def pretrain(model, data):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(4):
        for x, y in DataLoader(data, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def run(seed, mended):
    torch.manual_seed(seed)
    source, _ = digits_of((0, 4), 0.1, seed)
    model = SmallBackbone(num_classes=5)
    pretrain(model, source)

    target_train, target_val = digits_of((5, 9), 0.5, seed)
    for p in model.features.parameters():
        p.requires_grad = False
    if mended:
        model.classifier = nn.Linear(128, 5)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    if not mended:
        model.classifier = nn.Linear(128, 5)

    criterion = nn.CrossEntropyLoss()
    monitor = Monitor(model, optimizer)
    for epoch in range(15):
        model.train()
        total = 0
        for inputs, labels in DataLoader(target_train, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            monitor.step(loss, inputs=inputs, targets=labels, outputs=outputs)
            optimizer.step()
            total += loss.item() * len(labels)
        model.eval()
        with torch.no_grad():
            x, y = target_val.tensors
            logits = model(x)
            val_loss = criterion(logits, y).item()
            accuracy = (logits.argmax(1) == y).float().mean().item()
        monitor.validated(epoch, {"train/loss": total / len(target_train)}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
