"""Knowledge distillation: a small student learns from the softened outputs of a frozen teacher."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits


def data():
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    X, y = X[order], y[order]
    return {"train": (X[:1000], y[:1000]), "val": (X[1000:1400], y[1000:1400]), "test": (X[1400:], y[1400:])}


def train_teacher():
    X, y = data()["train"]
    teacher = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(teacher(X), y).backward()
        optimizer.step()
    return teacher.eval().requires_grad_(False)


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

    def forward(self, x):
        return self.net(x)


class Distillation:
    def __init__(self, temperature=3.0, alpha=0.5):
        self.teacher = train_teacher()
        self.temperature = temperature
        self.alpha = alpha

    def __call__(self, model, batch):
        x, y = batch
        logits = model(x)
        with torch.no_grad():
            soft = F.softmax(self.teacher(x) / self.temperature, dim=1)
        distilled = F.kl_div(F.log_softmax(logits / self.temperature, dim=1), soft, reduction="batchmean")
        loss = self.alpha * F.cross_entropy(logits, y) + (1 - self.alpha) * self.temperature**2 * distilled
        return {"loss": loss, "outputs": logits}


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    X, y = splits["train"]
    student, distill = Student(), Distillation()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    for epoch in range(20):
        for rows in torch.randperm(len(X)).split(50):
            optimizer.zero_grad()
            distill(student, (X[rows], y[rows]))["loss"].backward()
            optimizer.step()
    X, y = splits["val"]
    print("validation accuracy", (student(X).argmax(1) == y).float().mean().item())
