"""Does a generator of digits get better when it is trained against the Fréchet distance itself?

    python examples/digits_generator.py [picture.png]

A small variational autoencoder learns scikit-learn's 8 x 8 digits. Its decoder is then fine-tuned for a few seconds
with `frechet_distance` as the loss: 128 generated digits against the training set, in 32 features of a classifier, as
FID is defined for larger images. The distance is measured on digits that neither has seen, in the features of that
classifier and in those of another one that the loss never saw: an improvement in the first alone would be a trick on
its features.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from frechet.calculus.distances import frechet_distance, gaussian_of

LATENT, TRAIN, BATCH, STEPS = 16, 1200, 128, 300


@dataclass(frozen=True)
class Found:
    accuracies: list[float]  # of the two classifiers
    before: list[float]  # distance to unseen digits, in the features of each
    after: list[float]
    real: list[float]  # of the training digits themselves
    history: list[float]
    images: tuple[Tensor, Tensor]  # the same latent vectors before and after


def classifier(x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.requires_grad_(False)


def autoencoder(x: Tensor) -> nn.Module:
    """The decoder of a variational autoencoder."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid())
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-3)
    for _ in range(400):
        batch = x[torch.randint(0, len(x), (BATCH,))]
        mean, log_scale = encoder(batch).chunk(2, -1)
        z = mean + torch.randn_like(mean) * log_scale.exp()
        fit = 10 * (decoder(z) - batch).square().sum(1).mean()
        prior = 0.5 * (mean.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum(1).mean()
        optimizer.zero_grad()
        (fit + prior).backward()
        optimizer.step()
    return decoder


def run() -> Found:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 16).float(), torch.from_numpy(labels)
    train, test = x[:TRAIN], x[TRAIN:]
    nets = [classifier(train, y[:TRAIN], seed) for seed in (0, 1)]
    features = [net[:4] for net in nets]
    decoder = autoencoder(train)
    unseen = [gaussian_of(f(test)) for f in features]
    shown = torch.randn(40, LATENT)

    def distances() -> list[float]:
        torch.manual_seed(1)
        with torch.no_grad():
            made = decoder(torch.randn(1000, LATENT))
            return [float(frechet_distance(f(made), u)) for f, u in zip(features, unseen, strict=True)]

    before, first = distances(), decoder(shown).detach()
    reference = gaussian_of(features[0](train))
    optimizer, history = torch.optim.Adam(decoder.parameters(), 1e-3), []
    for _ in range(STEPS):
        loss = frechet_distance(features[0](decoder(torch.randn(BATCH, LATENT))), reference)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    return Found(
        accuracies=[float((net(test).argmax(1) == y[TRAIN:]).float().mean()) for net in nets],
        before=before,
        after=distances(),
        real=[float(frechet_distance(gaussian_of(f(train)), u)) for f, u in zip(features, unseen, strict=True)],
        history=history,
        images=(first, decoder(shown).detach()),
    )


def picture(found: Found, path: Path) -> None:
    figure = Figure(figsize=(9, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[1, 1.2])
    rows = [torch.cat([d.view(8, 8) for d in block[:20]], 1) for block in found.images]
    top.imshow(torch.cat(rows).numpy(), cmap="gray_r")
    top.set(xticks=[], yticks=[3.5, 11.5], yticklabels=["before", "after"])
    bottom.semilogy(found.history)
    bottom.set(xlabel="step", ylabel="Fréchet distance", title=f"the loss, {BATCH} digits at a time")
    figure.savefig(path, dpi=120)


def main() -> None:
    found = run()
    print("Fréchet distance to unseen digits     before   after   training digits")
    names = ("features of the loss", "features it never saw")
    for name, *row, accuracy in zip(names, found.before, found.after, found.real, found.accuracies, strict=True):
        print(
            f"  {name:34s} {row[0]:7.2f} {row[1]:7.2f} {row[2]:9.2f}   (a classifier that is right on {accuracy:.0%})"
        )
    path = Path(next(iter(sys.argv[1:]), "digits_generator.png"))
    picture(found, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
