import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from fivegate import Monitor


def load(seed):
    x, y = make_classification(
        3000,
        20,
        n_informative=8,
        n_redundant=4,
        weights=[0.96, 0.04],
        class_sep=1.6,
        n_clusters_per_class=1,
        flip_y=0.002,
        random_state=seed,
    )
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y)
    scaler = StandardScaler().fit(x_train)
    return scaler.transform(x_train), scaler.transform(x_test), y_train, y_test


def run(seed, mended):
    torch.manual_seed(seed)
    x_train, x_test, y_train, y_test = load(seed)
    weights = 1.0 / np.bincount(y_train)[y_train]
    sampler = WeightedRandomSampler(torch.tensor(weights), num_samples=len(y_train), replacement=True)
    train = TensorDataset(torch.tensor(x_train).float(), torch.tensor(y_train))
    loader = DataLoader(train, batch_size=64, sampler=sampler)
    x_test, y_true = torch.tensor(x_test).float(), torch.tensor(y_test)

    net = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    monitor = Monitor(net, optimizer)
    for epoch in range(12):
        net.train()
        losses = []
        for features, target in loader:
            optimizer.zero_grad()
            out = net(features)
            loss = criterion(out, target)
            loss.backward()
            monitor.step(loss, inputs=features, targets=target, outputs=out)
            optimizer.step()
            losses.append(loss.item())
        net.eval()
        with torch.no_grad():
            out = net(x_test)
            val_loss = criterion(out, y_true).item()
        score = balanced_accuracy_score(y_test, out.argmax(1).numpy())
        monitor.validated(epoch, {"train/loss": np.mean(losses)}, loss=val_loss, balanced_accuracy=score)
    return score, monitor
