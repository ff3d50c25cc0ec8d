import torch
from sklearn.datasets import make_multilabel_classification
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


class Tagger(nn.Module):
    def __init__(self, n_in, n_tags, squash=True):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(n_in, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.tags = nn.Linear(64, n_tags)
        self.squash = squash

    def forward(self, x):
        x = self.tags(self.body(x))
        return torch.sigmoid(x) if self.squash else x

    def predict(self, x):
        scores = self(x)
        return (scores if self.squash else torch.sigmoid(scores)) > 0.5


def make_data(seed):
    x, y = make_multilabel_classification(1200, 24, n_classes=8, n_labels=2, length=100, random_state=seed)
    x = StandardScaler().fit(x[:900]).transform(x)
    x, y = torch.tensor(x).float(), torch.tensor(y).float()
    return TensorDataset(x[:900], y[:900]), TensorDataset(x[900:], y[900:])


def run(seed, mended):
    torch.manual_seed(seed)
    train_data, val_data = make_data(seed)
    val_x, val_y = val_data[:]
    model = Tagger(24, 8, squash=not mended)
    loss_fn = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(20):
        model.train()
        epoch_loss = 0
        for x, y in DataLoader(train_data, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            y_hat = model(x)
            loss = loss_fn(y_hat, y)
            loss.backward()
            monitor.step(loss, inputs=x, targets=y, outputs=y_hat)
            optimizer.step()
            epoch_loss += loss.item() * len(x)
        model.eval()
        with torch.no_grad():
            val_loss = loss_fn(model(val_x), val_y).item()
            f1 = f1_score(val_y.numpy(), model.predict(val_x).numpy(), average="macro", zero_division=0)
        monitor.validated(epoch, {"train/loss": epoch_loss / len(train_data)}, loss=val_loss, f1_macro=f1)
    return f1, monitor
