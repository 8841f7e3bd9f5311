"""S. Liu, Y. Wei, J. Lu, J. Zhou (2018), An improved evaluation framework for generative adversarial networks,
arXiv 1803.07474.

Claim: one Gaussian does not fit features of many classes, and the distance by classes finds what FID does not. Tested
on draws from the one Gaussian that FID fits to digits: FID cannot tell them from digits, and they are none.
"""

from __future__ import annotations

import torch
from claim import Claim
from sklearn.datasets import load_digits

from frechet.calculus.distances import class_frechet_distance, frechet_distance


def classified(net, x):
    return net(x).argmax(1)


def measure() -> Claim:
    """Distances of real digits and of Gaussian draws to other digits, as one Gaussian and by classes."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 16).float(), torch.from_numpy(labels)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[:600]), y[:600]).backward()
        optimizer.step()
    with torch.no_grad():
        features, rest = net[:2](x).double(), slice(1200, None)
        reference, real = features[600:1200], features[rest]
        lam, V = torch.linalg.eigh(torch.cov(reference.T))
        noise = torch.randn(len(real), 32, dtype=torch.float64)
        drawn = reference.mean(0) + (noise * lam.clamp(min=0).sqrt()) @ V.T
        last = net[2].double()
        one = [float(frechet_distance(f, reference)) for f in (real, drawn)]
        classes = [
            float(class_frechet_distance(f, reference, classified(last, f), classified(last, reference)))
            for f in (real, drawn)
        ]
    fooled, found = one[1] < one[0], classes[1] > 1.5 * classes[0]
    return Claim(
        paper="Liu, Wei, Lu, Zhou 2018, arXiv 1803.07474",
        claim="the distance by classes finds unrealistic samples that FID prefers to real ones",
        theirs="counter examples in which FID disagrees with people and the class-aware distance does not",
        ours=(
            f"Gaussian draws beside real digits: one Gaussian {one[1]:.2f} and {one[0]:.2f}, "
            f"by classes {classes[1]:.2f} and {classes[0]:.2f}"
        ),
        verdict="holds" if fooled and found else "holds in part" if found else "does not hold here",
        why="draws from one Gaussian have its moments, and not those of each class",
        name="class_frechet_distance",
    )
