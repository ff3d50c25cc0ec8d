"""A tiny GPT on sums of two digits, written as text: "7+5=12;"."""

import random

import torch
import torch.nn as nn
from torch.nn import functional as F

CHARS = "0123456789+=; "
BLOCK = 16


def data():
    rng = random.Random(0)
    pairs = [(a, b) for a in range(10) for b in range(10)]

    def rows(n):
        text = "".join(f"{a}+{b}={a + b};" for a, b in rng.choices(pairs, k=n * BLOCK // 3))
        ids = torch.tensor([CHARS.index(c) for c in text])
        starts = [rng.randrange(len(ids) - BLOCK - 1) for _ in range(n)]
        return torch.stack([ids[s : s + BLOCK] for s in starts]), torch.stack(
            [ids[s + 1 : s + BLOCK + 1] for s in starts]
        )

    return {"train": rows(800), "val": rows(150), "test": rows(150)}


class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.register_buffer("mask", torch.tril(torch.ones(BLOCK, BLOCK)).view(1, 1, BLOCK, BLOCK))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))
        att = (q @ k.transpose(-2, -1)) / (k.size(-1) ** 0.5)
        att = att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, n_embd=32, n_head=4, n_layer=2):
        super().__init__()
        self.wte = nn.Embedding(len(CHARS), n_embd)
        self.wpe = nn.Embedding(BLOCK, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, len(CHARS), bias=False)
        self.lm_head.weight = self.wte.weight  # weight tying

    def forward(self, idx):
        pos = torch.arange(idx.size(1), device=idx.device)
        x = self.blocks(self.wte(idx) + self.wpe(pos))
        return self.lm_head(self.ln_f(x))


if __name__ == "__main__":
    torch.manual_seed(0)
    splits = data()
    x, y = splits["train"]
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    for epoch in range(15):
        for rows in torch.randperm(len(x)).split(40):
            logits = model(x[rows])
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), y[rows].view(-1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    x, y = splits["val"]
    with torch.no_grad():
        print("validation perplexity", F.cross_entropy(model(x).flatten(0, 1), y.flatten()).exp().item())
