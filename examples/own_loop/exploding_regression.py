"""A regression that explodes: prices in dollars, plain SGD, and nobody scaled anything.

    python examples/own_loop/exploding_regression.py

The loss grows by sixteen powers of ten within two steps. Where it leaves the range of numbers, `step` returns false.
"""

import torch
from torch import nn

from fivegate import Monitor

torch.manual_seed(0)
area = torch.rand(600, 1) * 200 + 30  # square metres
X = torch.cat([area, torch.rand(600, 3)], dim=1)
y = 4_000 * area + 20_000 * torch.randn(600, 1)  # dollars

model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
monitor = Monitor(model, optimizer, every=10)

for step in range(60):
    rows = torch.randint(0, 600, (32,))
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(X[rows]), y[rows])
    loss.backward()
    finite = monitor.step(loss)
    if step % 10 == 0 or step < 3 or not finite:
        print(f"step {step}: loss {loss:.3g}")
    if not finite:
        break
    optimizer.step()

print(monitor.diagnose().incident())
