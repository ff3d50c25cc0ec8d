import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


class FolderOfDigits(Dataset):
    """Pictures of digits, 8 x 8."""

    def __init__(self, images, labels):
        self.paths = [(int(label), row) for row, label in enumerate(labels)]
        self.paths.sort()
        self.images = images

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        label, row = self.paths[index]
        return torch.tensor(self.images[row] / 16.0, dtype=torch.float32)[None], label


class SmallCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 4, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


def run(seed, mended):
    torch.manual_seed(seed)
    digits = load_digits()
    a, b, ya, yb = train_test_split(digits.images, digits.target, test_size=0.3, random_state=seed)
    loader = DataLoader(FolderOfDigits(a, ya), batch_size=32, shuffle=mended)
    val_loader = DataLoader(FolderOfDigits(b, yb), batch_size=256)
    model = SmallCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(15):
        model.train()
        losses = []
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            monitor.step(loss, inputs=x, targets=y)
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            parts = [(model(x), y) for x, y in val_loader]
        out, y = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        accuracy = (out.argmax(1) == y).float().mean().item()
        monitor.validated(
            epoch, {"train/loss": sum(losses) / len(losses)}, loss=F.cross_entropy(out, y).item(), accuracy=accuracy
        )
    return accuracy, monitor
