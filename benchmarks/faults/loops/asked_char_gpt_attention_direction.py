"""Small character GPT on generated shop notes; the accuracy is that of the next character after a full window."""

import math
import random

import torch
import torch.nn as nn
import torch.nn.functional as F

from fivegate import Monitor

BLOCK, WIDTH, HEADS, LAYERS = 20, 32, 4, 2


def make_text(n=1200):
    rng = random.Random(7)
    who = ["anna", "bert", "clara", "dmitri"]
    verb = ["bought", "returned", "ordered"]
    what = ["two green lamps", "one wooden chair", "seven blue plates", "a small carpet"]
    return "".join(f"{rng.choice(who)} {rng.choice(verb)} {rng.choice(what)}.\n" for _ in range(n))


class Attention(nn.Module):
    def __init__(self, mended):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        ones = torch.ones(BLOCK, BLOCK)
        self.register_buffer("mask", torch.tril(ones) if mended else torch.triu(ones))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, HEADS, C // HEADS).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        att = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        att = att.masked_fill(self.mask[:T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, mended):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = Attention(mended)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self, vocab, mended):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.Sequential(*[Block(mended) for _ in range(LAYERS)])
        self.ln = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocab)

    def forward(self, idx):
        x = self.tok(idx) + self.pos(torch.arange(idx.size(1)))
        return self.head(self.ln(self.blocks(x)))


def run(seed, mended):
    torch.manual_seed(seed)
    text = make_text()
    chars = sorted(set(text))
    data = torch.tensor([chars.index(c) for c in text])
    cut = int(0.9 * len(data))
    train, val = data[:cut], data[cut:]

    def get_batch(split, size):
        ix = torch.randint(len(split) - BLOCK - 1, (size,))
        return torch.stack([split[i : i + BLOCK] for i in ix]), torch.stack([split[i + 1 : i + BLOCK + 1] for i in ix])

    model = GPT(len(chars), mended)
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3)
    monitor = Monitor(model, opt, every=20)
    accuracy = 0.0
    for epoch in range(10):
        model.train()
        total = 0.0
        for _ in range(25):
            x, y = get_batch(train, 16)
            logits = model(x)
            loss = F.cross_entropy(logits.view(-1, len(chars)), y.view(-1))
            opt.zero_grad(set_to_none=True)
            loss.backward()
            monitor.step(loss, inputs=x, targets=y, outputs=logits)
            opt.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            x, y = get_batch(val, 300)
            logits = model(x)
            val_loss = F.cross_entropy(logits.view(-1, len(chars)), y.view(-1)).item()
            accuracy = (logits[:, -1].argmax(-1) == y[:, -1]).float().mean().item()
        monitor.validated(epoch, {"train/loss": total / 25}, loss=val_loss, accuracy=accuracy)
    return accuracy, monitor
