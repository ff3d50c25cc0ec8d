import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 24)

    def forward(self, x):
        return torch.relu(self.fc2(torch.relu(self.fc1(x))))


class FewShotClassifier(nn.Module):
    def __init__(self, encoder_state=None, init_last=True):
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(24, 10)
        if not init_last:
            self.apply(init_weights)
        if encoder_state is not None:
            self.encoder.load_state_dict(encoder_state)
        if init_last:
            self.apply(init_weights)

    def forward(self, x):
        return self.head(self.encoder(x))


def init_weights(m):
    if isinstance(m, nn.Linear):
        nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
        nn.init.zeros_(m.bias)


def pretrained_encoder(x, y):
    encoder, head = Encoder(), nn.Linear(24, 10)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(20):
        for xb, yb in DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(encoder(xb)), yb).backward()
            optimizer.step()
    return copy.deepcopy(encoder.state_dict())


def run(seed, mended):
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x).float() / 16, torch.tensor(y)
    order = torch.randperm(len(y))
    source, few, held = order[:1000], order[1000:1100], order[1100:]
    x = (x - x[source].mean()) / x[source].std()
    state = pretrained_encoder(x[source], y[source])

    model = FewShotClassifier(state, init_last=not mended)
    for p in model.encoder.fc1.parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.Adam(
        [{"params": model.encoder.fc2.parameters(), "lr": 1e-5}, {"params": model.head.parameters(), "lr": 5e-3}]
    )
    monitor = Monitor(model, optimizer)
    loader = DataLoader(TensorDataset(x[few], y[few]), batch_size=10, shuffle=True)
    for epoch in range(30):
        model.train()
        total = 0.0
        for xb, yb in loader:
            optimizer.zero_grad()
            out = model(xb)
            loss = nn.functional.cross_entropy(out, yb)
            loss.backward()
            monitor.step(loss, xb, yb, out)
            optimizer.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            out = model(x[held])
            acc = (out.argmax(1) == y[held]).float().mean().item()
            val_loss = nn.functional.cross_entropy(out, y[held]).item()
        monitor.validated(epoch, {"train/loss": total / len(loader)}, loss=val_loss, accuracy=acc)
    return acc, monitor
