"""A bidirectional LSTM on padded sequences of different length, packed with pack_padded_sequence."""

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

VOCAB, MAX_LEN = 30, 20


def data():
    """Sentences of 5 to 20 words; the label says which of words 1 and 2 stands nearer to the end."""
    rng = np.random.default_rng(0)
    ids = np.zeros((1500, MAX_LEN), dtype=np.int64)
    lengths = rng.integers(5, MAX_LEN + 1, 1500)
    labels = np.zeros(1500, dtype=np.int64)
    for i, length in enumerate(lengths):
        sentence = rng.integers(3, VOCAB, length)
        first, second = sorted(rng.choice(length, 2, replace=False))
        labels[i] = rng.integers(2)
        sentence[first], sentence[second] = (2, 1) if labels[i] else (1, 2)
        ids[i, :length] = sentence
    cut = {"train": slice(0, 900), "val": slice(900, 1200), "test": slice(1200, 1500)}
    return {name: ((ids[rows], lengths[rows]), labels[rows]) for name, rows in cut.items()}


class SentenceClassifier(nn.Module):
    def __init__(self, embed_dim=24, hidden_dim=24):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, embed_dim, padding_idx=0)
        self.lstm = nn.LSTM(embed_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_dim, 2)

    def forward(self, batch):
        text, text_lengths = batch
        embedded = self.embedding(text)
        packed = pack_padded_sequence(embedded, text_lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.fc(torch.cat((hidden[-2], hidden[-1]), dim=1))


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    (ids, lengths), labels = splits["train"]
    ids, lengths, labels = map(torch.from_numpy, (ids, lengths, labels))
    model = SentenceClassifier()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(12):
        for rows in torch.randperm(len(ids)).split(50):
            optimizer.zero_grad()
            criterion(model((ids[rows], lengths[rows])), labels[rows]).backward()
            optimizer.step()
    (ids, lengths), labels = splits["val"]
    predicted = model((torch.from_numpy(ids), torch.from_numpy(lengths))).argmax(1)
    print("validation accuracy", (predicted == torch.from_numpy(labels)).float().mean().item())
