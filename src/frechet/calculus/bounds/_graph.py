"""A network as a graph of four kinds of nodes: input, affine map, elementwise function, sum.

All numbers of a node are one flat vector. Parents come before children. The Jacobian is a graph of the same kind: it
starts from rows of weights of the outputs, goes through the transposes of the affine maps, and is multiplied by the
activations' slopes (`jacobian_graph`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frechet.calculus.bounds._affine import Affine, Selection, Transposed
from frechet.calculus.bounds._elementwise import Elementwise, Factor


@dataclass(frozen=True, eq=False)
class Node:
    """One vector of the network, and how it follows from its parents."""

    size: int
    parents: tuple[int, ...] = ()
    affine: Affine | None = None
    function: Elementwise | None = None
    signs: tuple[int, ...] = ()  # of a sum, one for each parent


@dataclass(eq=False)
class Graph:
    """Nodes in an order in which parents come first; node 0 is the input, `output` the result."""

    nodes: list[Node] = field(default_factory=list)
    output: int = 0

    def add(self, node: Node) -> int:
        """The number of a new node."""
        self.nodes.append(node)
        return len(self.nodes) - 1

    def affine(self, parent: int, map: Affine, size: int) -> int:
        return self.add(Node(size, (parent,), affine=map))

    def elementwise(self, parent: int, function: Elementwise) -> int:
        return self.add(Node(self.nodes[parent].size, (parent,), function=function))

    def sum(self, parents: tuple[int, ...], signs: tuple[int, ...]) -> int:
        return self.add(Node(self.nodes[parents[0]].size, parents, signs=signs))

    def functions(self) -> list[int]:
        """The elementwise nodes."""
        return [i for i, node in enumerate(self.nodes) if node.function is not None]


@dataclass(frozen=True, eq=False)
class JacobianGraph:
    """The graph of w' J, and which of its nodes is the gradient in front of each activation."""

    graph: Graph
    scaled: Mapping[int, int]  # elementwise node of the network -> node of the Jacobian


def jacobian_graph(network: Graph, slopes: Mapping[int, tuple[Tensor, Tensor]]) -> JacobianGraph:
    """The graph of w' J for rows w of weights of the outputs, with each activation's range of slopes."""
    found = Graph([Node(network.nodes[network.output].size)])
    arriving: dict[int, list[tuple[int, int]]] = {network.output: [(0, 1)]}
    scaled: dict[int, int] = {}
    for i in reversed(range(network.output + 1)):
        terms = arriving.pop(i, None)
        if terms is None:  # nothing of the output depends on it
            continue
        here = _summed(found, terms)
        node = network.nodes[i]
        if node.affine is not None:
            p = node.parents[0]
            arriving.setdefault(p, []).append((found.affine(here, Transposed(node.affine), network.nodes[p].size), 1))
        elif node.function is not None:
            scaled[i] = found.elementwise(here, Factor(*slopes[i]))
            arriving.setdefault(node.parents[0], []).append((scaled[i], 1))
        elif node.parents:
            for p, sign in zip(node.parents, node.signs, strict=True):
                arriving.setdefault(p, []).append((here, sign))
        else:
            found.output = here
    if found.output == 0:  # the output does not depend on the input
        nothing = Selection(torch.zeros(network.nodes[0].size, dtype=torch.long), found.nodes[0].size)
        found.output = found.affine(0, nothing, network.nodes[0].size)
    return JacobianGraph(found, scaled)


def _summed(graph: Graph, terms: list[tuple[int, int]]) -> int:
    if len(terms) == 1 and terms[0][1] == 1:
        return terms[0][0]
    return graph.sum(tuple(i for i, _ in terms), tuple(sign for _, sign in terms))
