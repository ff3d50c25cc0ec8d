"""An encoder and a decoder with teacher forcing learn to reverse a sequence of digits."""

import random

import torch
import torch.nn as nn
import torch.nn.functional as F

SOS, VOCAB, LENGTH = 10, 11, 5


def data():
    g = torch.Generator().manual_seed(0)
    source = torch.randint(0, 10, (2100, LENGTH), generator=g).unique(dim=0)
    source = source[torch.randperm(len(source), generator=g)][:2000]
    target = source.flip(1)
    cut = {"train": slice(0, 1400), "val": slice(1400, 1700), "test": slice(1700, None)}
    return {name: (source[rows], target[rows]) for name, rows in cut.items()}


class Seq2Seq(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 32)
        self.encoder = nn.GRU(32, hidden, batch_first=True)
        self.decoder = nn.GRU(32, hidden, batch_first=True)
        self.out = nn.Linear(hidden, VOCAB)

    def forward(self, src, trg=None, teacher_forcing_ratio=0.5):
        _, hidden = self.encoder(self.embedding(src))
        token = torch.full((src.size(0), 1), SOS, dtype=torch.long, device=src.device)
        outputs = []
        for t in range(LENGTH):
            output, hidden = self.decoder(self.embedding(token), hidden)
            logits = self.out(output)
            outputs.append(logits)
            teacher_force = trg is not None and random.random() < teacher_forcing_ratio
            token = trg[:, t : t + 1] if teacher_force else logits.argmax(-1)
        return torch.cat(outputs, dim=1)


def step(model, batch):
    src, trg = batch
    outputs = model(src, trg if model.training else None, teacher_forcing_ratio=0.9)
    return {"loss": F.cross_entropy(outputs.flatten(0, 1), trg.flatten()), "outputs": outputs}


if __name__ == "__main__":
    torch.manual_seed(0)
    random.seed(0)
    splits = data()
    src, trg = splits["train"]
    model = Seq2Seq()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(12):
        model.train()
        for rows in torch.randperm(len(src)).split(50):
            optimizer.zero_grad()
            step(model, (src[rows], trg[rows]))["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()
    src, trg = splits["val"]
    with torch.no_grad():
        print("validation token accuracy", (model(src).argmax(-1) == trg).float().mean().item())
