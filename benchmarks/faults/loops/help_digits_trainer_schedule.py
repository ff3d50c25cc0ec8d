import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from fivegate import Monitor


class Trainer:
    def __init__(self, model, lr, epochs, gamma, every_batch):
        self.model, self.epochs, self.every_batch = model, epochs, every_batch
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        self.scheduler = optim.lr_scheduler.ExponentialLR(self.optimizer, gamma)
        self.monitor = Monitor(model, self.optimizer)

    def fit(self, train_loader, val_loader):
        for epoch in range(self.epochs):
            train_loss = self._train(train_loader)
            val_loss, accuracy = self._evaluate(val_loader)
            self.monitor.validated(epoch, {"train/loss": train_loss}, loss=val_loss, accuracy=accuracy)
        return accuracy

    def _train(self, loader):
        self.model.train()
        losses = []
        for xb, yb in loader:
            self.optimizer.zero_grad()
            loss = self.criterion(self.model(xb), yb)
            loss.backward()
            self.monitor.step(loss)
            self.optimizer.step()
            if self.every_batch:
                self.scheduler.step()
            losses.append(loss.item())
        if not self.every_batch:
            self.scheduler.step()
        return sum(losses) / len(losses)

    @torch.no_grad()
    def _evaluate(self, loader):
        self.model.eval()
        loss = hits = count = 0
        for xb, yb in loader:
            out = self.model(xb)
            loss += self.criterion(out, yb).item() * len(xb)
            hits += (out.argmax(1) == yb).sum().item()
            count += len(xb)
        return loss / count, hits / count


def run(seed, mended):
    torch.manual_seed(seed)
    X, y = load_digits(return_X_y=True)
    Xt, Xv, yt, yv = train_test_split(X / 16.0, y, test_size=0.25, random_state=seed, stratify=y)
    make = lambda a, b: TensorDataset(torch.tensor(a, dtype=torch.float32), torch.tensor(b))
    train = DataLoader(make(Xt, yt), batch_size=32, shuffle=True)
    val = DataLoader(make(Xv, yv), batch_size=128)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
    trainer = Trainer(model, lr=0.03, epochs=20, gamma=0.98, every_batch=not mended)
    return trainer.fit(train, val), trainer.monitor
