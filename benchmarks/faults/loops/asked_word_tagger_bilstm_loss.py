"""Tag every word of a sentence; the tag depends on the word and on its neighbours."""

import torch
from torch import nn, optim

from fivegate import Monitor

VOCAB, TAGS, LEN = 40, 5, 16


def corpus(n, seed):
    g = torch.Generator().manual_seed(seed)
    w = torch.randint(0, VOCAB, (n, LEN), generator=g)
    prev = torch.cat([torch.zeros(n, 1, dtype=torch.long), w[:, :-1]], dim=1)
    return w, (w % 4 + (prev % 2 == 0) * (w % 4 == 1) * 3).clamp(max=TAGS - 1)


class BiLSTMTagger(nn.Module):
    def __init__(self, vocab_size, embedding_dim, hidden_dim, tagset_size):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim // 2, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(hidden_dim, tagset_size)

    def forward(self, sentence):
        lstm_out, _ = self.lstm(self.word_embeddings(sentence))
        return self.hidden2tag(lstm_out)


def run(seed, mended):
    torch.manual_seed(seed)
    X, Y = corpus(700, seed)
    Xv, Yv = corpus(200, 500 + seed)
    model = BiLSTMTagger(VOCAB, 16, 32, TAGS)
    criterion = nn.CrossEntropyLoss() if mended else nn.CrossEntropyLoss(reduction="sum")
    optimizer = optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    monitor = Monitor(model, optimizer, every=20)
    for epoch in range(15):
        model.train()
        epoch_loss, batches = 0.0, 0
        for idx in torch.randperm(len(X)).split(32):
            optimizer.zero_grad()
            tag_scores = model(X[idx])
            loss = criterion(tag_scores.reshape(-1, TAGS), Y[idx].reshape(-1))
            loss.backward()
            monitor.step(loss, inputs=X[idx], targets=Y[idx], outputs=tag_scores)
            optimizer.step()
            epoch_loss, batches = epoch_loss + loss.item(), batches + 1
        model.eval()
        with torch.no_grad():
            scores = model(Xv)
            vl = nn.functional.cross_entropy(scores.reshape(-1, TAGS), Yv.reshape(-1)).item()
            acc = (scores.argmax(-1) == Yv).float().mean().item()
        monitor.validated(epoch, {"train/loss": epoch_loss / batches}, loss=vl, accuracy=acc)
    return acc, monitor
