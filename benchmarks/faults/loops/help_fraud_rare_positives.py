import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from fivegate import Monitor


def load(seed):
    X, y = make_classification(
        4000,
        16,
        n_informative=6,
        n_redundant=2,
        n_clusters_per_class=1,
        weights=[0.955],
        class_sep=0.8,
        flip_y=0.0,
        random_state=11,
    )
    X = X + np.random.default_rng(5).normal(0, 0.7, X.shape)
    Xt, Xv, yt, yv = train_test_split(X, y, test_size=0.3, stratify=y, random_state=seed)
    scaler = StandardScaler().fit(Xt)
    tensor = lambda a: torch.tensor(a, dtype=torch.float32)
    return tensor(scaler.transform(Xt)), tensor(yt), tensor(scaler.transform(Xv)), tensor(yv)


def run(seed, mended):
    torch.manual_seed(seed)
    Xt, yt, Xv, yv = load(seed)
    weight = (yt == 0).sum() / (yt == 1).sum() if mended else torch.tensor(1.0)
    criterion = nn.BCEWithLogitsLoss(pos_weight=weight)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 1))
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, opt)
    for epoch in range(15):
        model.train()
        seen = []
        for b in torch.randperm(len(Xt)).split(64):
            z = model(Xt[b])[:, 0]
            loss = criterion(z, yt[b])
            opt.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=Xt[b], targets=yt[b], outputs=z)
            opt.step()
            seen.append(loss.item())
        model.eval()
        with torch.no_grad():
            z = model(Xv)[:, 0]
        guess = (z > 0).int().numpy()
        score = balanced_accuracy_score(yv.numpy(), guess)
        plain = float((guess == yv.numpy()).mean())
        monitor.validated(
            epoch,
            {"train/loss": float(np.mean(seen))},
            loss=criterion(z, yv).item(),
            accuracy=plain,
            balanced_accuracy=score,
        )
    return score, monitor
