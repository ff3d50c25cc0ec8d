import torch
from sklearn import datasets, preprocessing
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fivegate import Monitor


class TumorDataset(Dataset):
    def __init__(self, features, target):
        self.x = torch.tensor(features, dtype=torch.float32)
        self.y = torch.tensor(target, dtype=torch.float32).unsqueeze(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Classifier(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.l1 = nn.Linear(d, 24)
        self.l2 = nn.Linear(24, 12)
        self.out = nn.Linear(12, 1)

    def forward(self, x):
        x = torch.relu(self.l1(x))
        x = torch.relu(self.l2(x))
        return self.out(x)


def accuracy_of(logits, y, mended):
    predicted = (torch.sigmoid(logits).squeeze(1) > 0.5).float()
    if mended:
        y = y.squeeze(1)
    return (predicted == y).float().mean().item()


def run(seed, mended):
    torch.manual_seed(seed)
    data = datasets.load_breast_cancer()
    xtr, xva, ytr, yva = train_test_split(
        data.data, data.target, test_size=0.3, random_state=seed, stratify=data.target
    )
    sc = preprocessing.StandardScaler()
    train_ds, val_ds = TumorDataset(sc.fit_transform(xtr), ytr), TumorDataset(sc.transform(xva), yva)
    train_dl = DataLoader(train_ds, batch_size=16, shuffle=True)
    val_dl = DataLoader(val_ds, batch_size=len(val_ds))

    model = Classifier(xtr.shape[1])
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, optimizer)
    for epoch in range(20):
        model.train()
        train_loss = 0.0
        for x, y in train_dl:
            optimizer.zero_grad()
            logits = model(x)
            loss = criterion(logits, y)
            loss.backward()
            monitor.step(loss, inputs=x, targets=y, outputs=logits)
            optimizer.step()
            train_loss += loss.item() / len(train_dl)
        model.eval()
        with torch.no_grad():
            x, y = next(iter(val_dl))
            logits = model(x)
            val_loss = criterion(logits, y).item()
            acc = accuracy_of(logits, y, mended)
        monitor.validated(epoch, {"train/loss": train_loss}, loss=val_loss, accuracy=acc)
    return acc, monitor
