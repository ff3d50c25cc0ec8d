"""An LSTM reads each digit line by line (batch_first) and classifies from its last hidden state."""

import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


def data():
    X, y = load_digits(return_X_y=True)
    X = torch.tensor(X, dtype=torch.float32).view(-1, 8, 8) / 16  # 8 steps of 8 features
    y = torch.tensor(y, dtype=torch.long)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    train, val, test = order[:1000], order[1000:1400], order[1400:]
    return {name: TensorDataset(X[i], y[i]) for name, i in (("train", train), ("val", val), ("test", test))}


class LSTMClassifier(nn.Module):
    def __init__(self, input_size=8, hidden_size=48, num_layers=2, num_classes=10):
        super().__init__()
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x):
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size).to(x.device)
        c0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size).to(x.device)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1, :])


if __name__ == "__main__":
    torch.manual_seed(0)
    sets = data()
    model = LSTMClassifier()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(8):
        for x, y in DataLoader(sets["train"], batch_size=64, shuffle=True):
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    x, y = sets["val"].tensors
    print("validation accuracy", (model(x).argmax(1) == y).float().mean().item())
