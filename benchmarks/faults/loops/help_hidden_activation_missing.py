import torch
from torch import nn

from fivegate import Monitor


class Net(nn.Module):
    def __init__(self, widths, activation):
        super().__init__()
        layers = []
        for a, b in zip(widths[:-2], widths[1:-1]):
            layers += [nn.Linear(a, b), nn.BatchNorm1d(b)]
            if activation:
                layers.append(nn.ReLU())
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-2], widths[-1])

    def forward(self, x):
        return self.head(self.body(x))


def spirals(n, generator):
    label = torch.randint(0, 3, (n,), generator=generator)
    radius = torch.rand(n, generator=generator).sqrt()
    angle = 2.1 * radius * 2 + label * 2 * torch.pi / 3
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return 1.7 * (points + 0.02 * torch.randn(n, 2, generator=generator)), label


def run(seed, mended):
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed + 7)
    (x, y), (xv, yv) = spirals(2400, g), spirals(800, g)
    model = Net([2, 64, 64, 64, 3], mended)
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    loss_fn = nn.CrossEntropyLoss()
    monitor = Monitor(model, opt)
    for epoch in range(20):
        model.train()
        sum_loss = sum_right = 0.0
        for idx in torch.randperm(len(x)).split(64):
            out = model(x[idx])
            loss = loss_fn(out, y[idx])
            opt.zero_grad()
            loss.backward()
            monitor.step(loss, inputs=x[idx], targets=y[idx], outputs=out)
            opt.step()
            sum_loss += loss.item() * len(idx)
            sum_right += (out.argmax(1) == y[idx]).sum().item()
        model.eval()
        with torch.no_grad():
            out = model(xv)
            accuracy = (out.argmax(1) == yv).float().mean().item()
            monitor.validated(
                epoch,
                {"train/loss": sum_loss / len(x), "train/accuracy": sum_right / len(x)},
                loss=loss_fn(out, yv).item(),
                accuracy=accuracy,
            )
    return accuracy, monitor
