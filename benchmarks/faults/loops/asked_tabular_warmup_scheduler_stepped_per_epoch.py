import torch
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor

EPOCHS = 20
BATCH = 32
PEAK_LR = 0.1


class TabularNet(nn.Module):
    def __init__(self, n_features=20, n_classes=5):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, n_classes)
        )

    def forward(self, x):
        return self.net(x)


def warmup_then_linear(warmup_steps, total_steps):
    def factor(step):
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (total_steps - step) / (total_steps - warmup_steps))

    return factor


def train_one_epoch(model, loader, optimizer, scheduler, monitor, per_batch):
    model.train()
    total = 0.0
    for xb, yb in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(xb), yb)
        loss.backward()
        monitor.step(loss)
        optimizer.step()
        if per_batch:
            scheduler.step()
        total += loss.item()
    if not per_batch:
        scheduler.step()
    return total / len(loader)


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = make_classification(
        2000, 20, n_informative=10, n_redundant=4, n_classes=5, class_sep=1.5, flip_y=0.0, random_state=seed
    )
    X_train, X_val, y_train, y_val = train_test_split(X, y, test_size=0.3, random_state=seed, stratify=y)
    scaler = StandardScaler().fit(X_train)
    train_set = TensorDataset(torch.tensor(scaler.transform(X_train)).float(), torch.tensor(y_train))
    X_val, y_val = torch.tensor(scaler.transform(X_val)).float(), torch.tensor(y_val)
    loader = DataLoader(train_set, batch_size=BATCH, shuffle=True)

    model = TabularNet()
    optimizer = optim.SGD(model.parameters(), lr=PEAK_LR, weight_decay=1e-4)
    total_steps = EPOCHS * len(loader)
    scheduler = LambdaLR(optimizer, warmup_then_linear(int(0.3 * total_steps), total_steps))
    monitor = Monitor(model, optimizer)
    for epoch in range(EPOCHS):
        train_loss = train_one_epoch(model, loader, optimizer, scheduler, monitor, per_batch=mended)
        model.eval()
        with torch.no_grad():
            logits = model(X_val)
        acc = (logits.argmax(1) == y_val).float().mean().item()
        monitor.validated(
            epoch,
            {"train/loss": train_loss, "lr": scheduler.get_last_lr()[0]},
            loss=nn.functional.cross_entropy(logits, y_val).item(),
            accuracy=acc,
        )
    return acc, monitor
