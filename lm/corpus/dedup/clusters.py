"""Clusters: documents that pairs of duplicates connect, and which of each is kept."""

import numpy as np


def components(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """Return the least node that each node of a graph is connected with.

    Union-find over whole arrays: each round hooks roots of edges between different trees below the least root seen,
    then halves all paths until they are flat (Shiloach and Vishkin 1982). A few rounds, whatever the graph.

    Args:
      a, b: ends of the edges: int64 [edges].
      count: nodes.

    Returns:
      int64 [count].
    """
    parent = np.arange(count)
    while len(a):
        low, high = np.minimum(a, b), np.maximum(a, b)
        np.minimum.at(parent, high, low)
        while not np.array_equal(above := parent[parent], parent):
            parent = above
        a, b = parent[a], parent[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return parent


def best_of_each(clusters: np.ndarray, quality: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return for each member of clusters the one that is kept: higher quality, then longer, then earlier.

    Args:
      clusters: each member's cluster: int64 [members].
      quality, length: of the members.

    Returns:
      index of the member kept in its stead: int64 [members].
    """
    order = np.lexsort((np.arange(len(clusters)), -length, -quality, clusters))
    new = np.ones(len(order), bool)
    new[1:] = clusters[order][1:] != clusters[order][:-1]
    starts = np.flatnonzero(new)
    best = np.empty(len(order), np.int64)
    best[order] = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    return best
