"""Sequence labels: a tag per word, with -100 on the padding, which the loss ignores."""

import numpy as np
import torch
import torch.nn as nn

VOCAB, TAGS, LENGTH = 40, 4, 15


def data():
    """The tag of a word depends on the word and on the word before it."""
    rng = np.random.default_rng(0)
    n = 1200
    words = rng.integers(1, VOCAB, (n, LENGTH))
    previous = np.concatenate([np.zeros((n, 1), dtype=int), words[:, :-1]], axis=1)
    tags = (words % 2) * 2 + (previous > VOCAB // 2)
    padding = np.arange(LENGTH) >= rng.integers(5, LENGTH + 1, n)[:, None]
    words[padding] = 0
    tags[padding] = -100
    return {
        "train": (words[:800], tags[:800]),
        "val": (words[800:1000], tags[800:1000]),
        "test": (words[1000:], tags[1000:]),
    }


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 24, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, TAGS)

    def forward(self, words):
        hidden, _ = self.lstm(self.embedding(words))
        return self.out(hidden)  # [B, T, TAGS]


criterion = nn.CrossEntropyLoss(ignore_index=-100)


def step(model, batch):
    words, tags = batch
    logits = model(words)
    loss = criterion(logits.view(-1, TAGS), tags.view(-1))
    is_word = tags != -100
    accuracy = (logits.argmax(-1) == tags)[is_word].float().mean()
    return {"loss": loss, "tag_accuracy": accuracy}


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = {name: tuple(map(torch.from_numpy, pair)) for name, pair in data().items()}
    words, tags = splits["train"]
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(10):
        for rows in torch.randperm(len(words)).split(32):
            optimizer.zero_grad()
            step(model, (words[rows], tags[rows]))["loss"].backward()
            optimizer.step()
    with torch.no_grad():
        print("validation tag accuracy", step(model, splits["val"])["tag_accuracy"].item())
