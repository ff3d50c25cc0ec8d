import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset, random_split

from fivegate import Monitor


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.inner(x)


class ResMLP(nn.Module):
    def __init__(self, width=64, depth=3):
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


def run(seed, mended):
    max_norm = 1.0 if mended else 1e-3
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    dataset = TensorDataset(torch.tensor(x).float() / 16, torch.tensor(y))
    train_set, val_set = random_split(dataset, [1347, 450])
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, drop_last=True)
    val_x, val_y = val_set[:]

    model = ResMLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = Monitor(model, optimizer)
    for epoch in range(15):
        model.train()
        train_loss = 0.0
        for x, y in train_loader:
            logits = model(x)
            loss = nn.functional.cross_entropy(logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            monitor.step(loss, inputs=x, targets=y)
            clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            train_loss += loss.item() / len(train_loader)
        model.eval()
        with torch.inference_mode():
            logits = model(val_x)
            val_loss = nn.functional.cross_entropy(logits, val_y)
            accuracy = (logits.argmax(-1) == val_y).float().mean()
        monitor.validated(epoch, {"train/loss": train_loss}, loss=val_loss.item(), accuracy=accuracy.item())
    return accuracy.item(), monitor
