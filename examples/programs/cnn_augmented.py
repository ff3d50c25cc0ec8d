"""BatchNorm, dropout, and random shifts and noise in a Dataset of one's own."""

import random

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    def __init__(self, images, labels, augment=False):
        self.images = images
        self.labels = labels
        self.augment = augment

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, idx):
        image = self.images[idx] / 16.0
        if self.augment:
            image = np.roll(image, random.randint(-1, 1), axis=random.randint(0, 1))
            image = image + np.random.normal(0, 0.05, image.shape)
        return torch.from_numpy(image).float().unsqueeze(0), int(self.labels[idx])


def data():
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.images))
    train, val, test = np.split(order, [1000, 1400])
    return {
        "train": Digits(digits.images[train], digits.target[train], augment=True),
        "val": Digits(digits.images[val], digits.target[val]),
        "test": Digits(digits.images[test], digits.target[test]),
    }


def conv_block(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class ConvNet(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.features = nn.Sequential(conv_block(1, 16), nn.MaxPool2d(2), conv_block(16, 32), nn.AdaptiveAvgPool2d(2))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, num_classes))

    def forward(self, x):
        return self.classifier(self.features(x))


def main():
    torch.manual_seed(0)
    sets = data()
    loader = DataLoader(sets["train"], batch_size=50, shuffle=True)
    model = ConvNet()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.01)
    for epoch in range(10):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        hits = [model(x).argmax(1) == y for x, y in DataLoader(sets["val"], batch_size=100)]
    print("validation accuracy", torch.cat(hits).float().mean().item())


if __name__ == "__main__":
    main()
