"""A small GPT on text whose outputs collapse: whatever it reads, it says the same.

    python examples/own_loop/collapsing_gpt.py

It learns the letters of Python's own documentation. Its weight decay is a thousand times the usual one, so that the
weights shrink to zero and every position gets the same answer, while the loss stays at a harmless-looking value.
"""

import inspect

import torch
from torch import Tensor, nn

from fivegate import Monitor

CONTEXT = 16
torch.manual_seed(0)
text = (inspect.getdoc(inspect) or "") + inspect.getsource(inspect)[:20_000]
letters = sorted(set(text))
ids = torch.tensor([letters.index(letter) for letter in text])


class TinyGPT(nn.Module):
    """A causal block: ids [B, T] to logits [B, T, letters]."""

    def __init__(self, vocabulary: int, width: int = 32) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(vocabulary, width), nn.Embedding(CONTEXT, width)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.letters(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.blocks(hidden, mask=mask, is_causal=True))


model = TinyGPT(len(letters))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=10.0)
monitor = Monitor(model, optimizer, every=10)


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    """Windows of the text, and the same ones a letter later."""
    starts = torch.randint(0, len(ids) - CONTEXT - 1, (size,))
    windows = torch.stack([ids[start : start + CONTEXT + 1] for start in starts])
    return windows[:, :-1], windows[:, 1:]


def loss_of(x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


for epoch in range(5):
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_of(*batch())
        loss.backward()
        monitor.step(loss)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        x, y = batch(32)
        monitor.validated(loss=loss_of(x, y))
        answers = model(x).argmax(-1).unique().numel()
    print(f"epoch {epoch}: loss {loss:.3f}, {answers} different letters in {x.numel()} answers")

print(monitor.diagnose().incident())
