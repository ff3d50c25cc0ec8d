import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


class Annotated(Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


class SmallConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4, 96)
        self.fc2 = nn.Linear(96, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def annotate(truth, generator, mended):
    annotator = generator.integers(0, 5, len(truth))
    labels = truth.copy()
    careless = np.isin(annotator, [1, 3, 4])
    guesses = generator.integers(0, 10, len(truth))
    if not mended:
        labels[careless] = guesses[careless]
    return labels


def run(seed, mended):
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    bunch = load_digits()
    order = generator.permutation(len(bunch.target))
    images = torch.tensor(bunch.images[order] / 16.0, dtype=torch.float32).unsqueeze(1)
    truth = bunch.target[order]
    labels = torch.tensor(annotate(truth[:1300], generator, mended))
    train = DataLoader(Annotated(images[:1300], labels), batch_size=32, shuffle=True)
    x_val, y_val = images[1300:], torch.tensor(truth[1300:])
    model = SmallConv()
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, opt)
    acc = 0.0
    for epoch in range(30):
        model.train()
        losses, right = [], 0
        for x, y in train:
            out = model(x)
            loss = F.cross_entropy(out, y)
            opt.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=x, targets=y, outputs=out)
            opt.step()
            losses.append(loss.item())
            right += (out.argmax(1) == y).sum().item()
        model.eval()
        with torch.no_grad():
            out = model(x_val)
        acc = (out.argmax(1) == y_val).float().mean().item()
        monitor.validated(
            epoch,
            {"train/loss": float(np.mean(losses)), "train/accuracy": right / 1300},
            loss=F.cross_entropy(out, y_val).item(),
            accuracy=acc,
        )
    return acc, monitor
