"""A character-level language model of Python's help: a GRU that returns its logits and its hidden state."""

from pydoc_data.topics import topics

import torch
import torch.nn as nn
import torch.nn.functional as F

TEXT = " ".join(
    " ".join(topics[name].lower().split()) for name in ("assert", "class", "exceptions", "import", "for", "while")
)
CHARS = sorted(set(TEXT))
LENGTH = 32


def data():
    ids = torch.tensor([CHARS.index(c) for c in TEXT])
    gen = torch.Generator().manual_seed(0)

    def windows(start, end, n):
        starts = torch.randint(start, end - LENGTH - 1, (n,), generator=gen)
        x = torch.stack([ids[s : s + LENGTH] for s in starts])
        y = torch.stack([ids[s + 1 : s + LENGTH + 1] for s in starts])
        return x, y

    n = len(ids)
    return {
        "train": windows(0, int(0.6 * n), 500),
        "val": windows(int(0.6 * n), int(0.8 * n), 100),
        "test": windows(int(0.8 * n), n, 100),
    }


class CharRNN(nn.Module):
    def __init__(self, vocab_size=len(CHARS), hidden_size=64):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, 32)
        self.rnn = nn.GRU(32, hidden_size, batch_first=True)
        self.decoder = nn.Linear(hidden_size, vocab_size)

    def forward(self, x, hidden=None):
        out, hidden = self.rnn(self.embed(x), hidden)
        return self.decoder(out), hidden


def step(model, batch):
    x, y = batch
    logits, _ = model(x)
    return {"loss": F.cross_entropy(logits.transpose(1, 2), y), "outputs": logits}


def sample(model, prompt, n):
    ids, hidden = torch.tensor([[CHARS.index(c) for c in prompt]]), None
    for _ in range(n):
        logits, hidden = model(ids, hidden)
        ids = logits[:, -1:].argmax(-1)
        prompt += CHARS[ids.item()]
    return prompt


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    x, y = splits["train"]
    model = CharRNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for epoch in range(12):
        for rows in torch.randperm(len(x)).split(25):
            logits, _ = model(x[rows])
            loss = F.cross_entropy(logits.reshape(-1, len(CHARS)), y[rows].reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x, y = splits["val"]
    with torch.no_grad():
        loss = F.cross_entropy(model(x)[0].reshape(-1, len(CHARS)), y.reshape(-1))
    print("validation perplexity", loss.exp().item())
    print(sample(model, "the ", 40))
