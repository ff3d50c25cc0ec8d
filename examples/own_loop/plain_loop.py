"""A plain loop with the Monitor: a classifier whose learning rate is a thousand times too high.

    python examples/own_loop/plain_loop.py

Three lines are Fivegate's; the loop is what one writes anyway. The diagnosis names the cause at the end.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from fivegate import Monitor

torch.manual_seed(0)
digits = load_digits()
X, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
train, val = torch.arange(1200), torch.arange(1200, 1797)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)  # 0.001 would do
monitor = Monitor(model, optimizer)

for epoch in range(5):
    model.train()
    for rows in train[torch.randperm(1200)].split(64):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X[rows]), y[rows])
        loss.backward()
        monitor.step(loss)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = model(X[val])
        accuracy = (outputs.argmax(1) == y[val]).float().mean()
        monitor.validated(loss=nn.functional.cross_entropy(outputs, y[val]), accuracy=accuracy)
    print(f"epoch {epoch}: loss {loss:.3g}, validation accuracy {accuracy:.3f}")

print(monitor.diagnose().incident())
