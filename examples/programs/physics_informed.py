"""A physics-informed network: the loss is the residual of u' = -2 u + cos(t), with torch.autograd.grad inside."""

import numpy as np
import torch
import torch.nn as nn


def solution(t):
    return 0.6 * np.exp(-2 * t) + 0.4 * np.cos(t) + 0.2 * np.sin(t)


def data():
    """Points in time, and the exact solution, which only evaluation uses."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, n in (("train", 600), ("val", 200), ("test", 200)):
        t = rng.uniform(0, 3, (n, 1)).astype(np.float32)
        splits[name] = (t, solution(t).astype(np.float32))
    return splits


class PINN(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, t):
        return self.net(t)


def physics_loss(model, t):
    t = t.clone().requires_grad_(True)
    u = model(t)
    du = torch.autograd.grad(u, t, grad_outputs=torch.ones_like(u), create_graph=True)[0]
    residual = du + 2 * u - torch.cos(t)
    start = model(torch.zeros(1, 1)) - 1.0
    return (residual**2).mean() + (start**2).mean()


def step(model, batch):
    t, u = batch
    return {"loss": physics_loss(model, t), "outputs": model(t)}


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = {name: tuple(map(torch.from_numpy, pair)) for name, pair in data().items()}
    t, _ = splits["train"]
    model = PINN()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(60):
        for rows in torch.randperm(len(t)).split(60):
            optimizer.zero_grad()
            physics_loss(model, t[rows]).backward()
            optimizer.step()
    t, u = splits["val"]
    with torch.no_grad():
        print("validation root mean squared error", (model(t) - u).pow(2).mean().sqrt().item())
