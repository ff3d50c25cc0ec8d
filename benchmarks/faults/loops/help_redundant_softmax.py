import torch
from torch import nn

from fivegate import Monitor

TOPICS, WORDS, LENGTH = 40, 160, 12


def corpus(n, generator):
    topic = torch.randint(0, TOPICS, (n,), generator=generator)
    own = topic[:, None] * 4 + torch.randint(0, 4, (n, LENGTH), generator=generator)
    other = torch.randint(0, WORDS, (n, LENGTH), generator=generator)
    return torch.where(torch.rand(n, LENGTH, generator=generator) < 0.5, own, other), topic


class TopicModel(nn.Module):
    def __init__(self, probabilities):
        super().__init__()
        self.embed = nn.Embedding(WORDS, 32)
        self.place = nn.Parameter(torch.zeros(LENGTH, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.out = nn.Linear(32, TOPICS)
        self.last = nn.Softmax(dim=-1) if probabilities else nn.Identity()

    def forward(self, tokens):
        h = self.block(self.embed(tokens) + self.place)
        return self.last(self.out(h.mean(1)))


class Learner:
    def __init__(self, model, lr=0.1):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        self.criterion = nn.CrossEntropyLoss()
        self.monitor = Monitor(model, self.optimizer)

    def fit(self, train, val, epochs):
        x, y = train
        score = 0.0
        for epoch in range(epochs):
            self.model.train()
            total = 0.0
            for rows in torch.randperm(len(x)).split(64):
                self.optimizer.zero_grad()
                loss = self.criterion(self.model(x[rows]), y[rows])
                loss.backward()
                self.monitor.step(loss)
                self.optimizer.step()
                total += loss.item() * len(rows)
            loss, score = self.validate(*val)
            self.monitor.validated(epoch, {"train/loss": total / len(x)}, loss=loss, accuracy=score)
        return score

    @torch.no_grad()
    def validate(self, x, y):
        self.model.eval()
        out = self.model(x)
        return self.criterion(out, y).item(), (out.argmax(1) == y).float().mean().item()


def run(seed, mended):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    learner = Learner(TopicModel(probabilities=not mended))
    score = learner.fit(corpus(2000, generator), corpus(600, generator), epochs=12)
    return score, learner.monitor
