"""A transformer encoder with a padding mask, made from the zeros of its input."""

import torch
import torch.nn as nn

PAD, VOCAB, LENGTH = 0, 20, 12


def data():
    """Which of three key words occurs in the sentence?"""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(4, VOCAB, (1500, LENGTH), generator=g)
    lengths = torch.randint(4, LENGTH + 1, (1500,), generator=g)
    y = torch.randint(3, (1500,), generator=g)
    place = (torch.rand(1500, generator=g) * lengths).long()
    x[torch.arange(1500), place] = y + 1
    x[torch.arange(LENGTH) >= lengths[:, None]] = PAD
    return {"train": (x[:900], y[:900]), "val": (x[900:1200], y[900:1200]), "test": (x[1200:], y[1200:])}


class TextTransformer(nn.Module):
    def __init__(self, d_model=32, nhead=4, num_layers=2, num_classes=3):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, d_model, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(1, LENGTH, d_model) * 0.02)
        layer = nn.TransformerEncoderLayer(d_model, nhead, dim_feedforward=64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.fc = nn.Linear(d_model, num_classes)

    def forward(self, x):
        mask = x == PAD
        h = self.encoder(self.embedding(x) + self.position, src_key_padding_mask=mask)
        h = h.masked_fill(mask.unsqueeze(-1), 0).sum(1) / (~mask).sum(1, keepdim=True)
        return self.fc(h)


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    x, y = splits["train"]
    model = TextTransformer()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(10):
        model.train()
        for rows in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            criterion(model(x[rows]), y[rows]).backward()
            optimizer.step()
    model.eval()
    x, y = splits["val"]
    print("validation accuracy", (model(x).argmax(1) == y).float().mean().item())
