"""An autoencoder compresses digits of 64 pixels to 8 numbers."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    """Gives (image, image), since the image is its own target."""

    def __init__(self, images):
        self.images = torch.tensor(images, dtype=torch.float32)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.images[i]


def data():
    X = load_digits().data / 16
    return {"train": Images(X[:1000]), "val": Images(X[1000:1400]), "test": Images(X[1400:])}


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())

    def forward(self, x):
        return self.decoder(self.encoder(x))


if __name__ == "__main__":
    torch.manual_seed(0)
    sets = data()
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(30):
        for x, target in DataLoader(sets["train"], batch_size=32, shuffle=True):
            loss = nn.functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x = sets["val"].images
    print("validation root mean squared error", nn.functional.mse_loss(model(x), x).sqrt().item())
