import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


class Compose:
    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class ToTensor:
    def __init__(self, white=255):
        self.white = white

    def __call__(self, image):
        return torch.from_numpy(image.astype(np.float32)).unsqueeze(0) / self.white


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, tensor):
        return (tensor - self.mean) / self.std


class DigitImages(Dataset):
    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


def build_model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


class Trainer:
    def __init__(self, model, lr):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self.criterion = nn.CrossEntropyLoss()
        self.monitor = Monitor(model, self.optimizer)

    def fit(self, train_loader, val_loader, epochs):
        for epoch in range(epochs):
            self.model.train()
            losses = []
            for images, labels in train_loader:
                self.optimizer.zero_grad()
                logits = self.model(images)
                loss = self.criterion(logits, labels)
                loss.backward()
                self.monitor.step(loss, inputs=images, targets=labels, outputs=logits)
                self.optimizer.step()
                losses.append(loss.item())
            val_loss, val_acc = self.validate(val_loader)
            self.monitor.validated(epoch, {"train/loss": sum(losses) / len(losses)}, loss=val_loss, accuracy=val_acc)
        return val_acc

    @torch.no_grad()
    def validate(self, loader):
        self.model.eval()
        losses, hits = [], []
        for images, labels in loader:
            logits = self.model(images)
            losses.append(self.criterion(logits, labels).item())
            hits.append((logits.argmax(1) == labels).float())
        return sum(losses) / len(losses), torch.cat(hits).mean().item()


def run(seed, mended):
    torch.manual_seed(seed)
    digits = load_digits()
    tr_i, va_i, tr_l, va_l = train_test_split(digits.images, digits.target, test_size=0.3, random_state=seed)
    normalize = Normalize(tr_i.mean() / 16, tr_i.std() / 16)
    train_tf = Compose(ToTensor(white=16), normalize)
    val_tf = Compose(ToTensor(white=16) if mended else ToTensor(), normalize)
    trainer = Trainer(build_model(), lr=2e-3)
    score = trainer.fit(
        DataLoader(DigitImages(tr_i, tr_l, train_tf), batch_size=32, shuffle=True),
        DataLoader(DigitImages(va_i, va_l, val_tf), batch_size=128),
        epochs=10,
    )
    return score, trainer.monitor
