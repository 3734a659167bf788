"""The fixed transform of our own autoencoders: cosine patches times opponent colours, as orthonormal rows."""

import numpy as np
import torch
from torch import nn


def patch_encoder(patch: int, luma: int, chroma: int) -> nn.Conv2d:
    """Pictures [B, 3, H, W] to coefficients [B, luma + 2 * chroma, H / patch, W / patch]; nobody trains it."""
    basis = torch.from_numpy(patch_basis(patch, luma, chroma))
    encoder = nn.Conv2d(3, len(basis), patch, stride=patch, bias=False)
    encoder.weight.data.copy_(basis)
    return encoder.requires_grad_(False)


def patch_basis(patch: int, luma: int, chroma: int) -> np.ndarray:
    """Orthonormal rows [luma + 2 * chroma, 3, patch, patch]: low frequencies first, more of them for brightness."""
    ticks = np.arange(patch)
    cosine = np.cos(np.pi * (2 * ticks + 1) * ticks[:, None] / (2 * patch))
    cosine /= np.linalg.norm(cosine, axis=1, keepdims=True)
    # Brightness, blue against yellow, red against green: near the principal colours of faces.
    colours = np.array([[1, 1, 1], [-1, -1, 2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
    frequencies = sorted(((u, v) for u in ticks for v in ticks), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))
    rows = [
        colour[:, None, None] * np.outer(cosine[u], cosine[v])
        for colour, count in zip(colours, (luma, chroma, chroma), strict=True)
        for u, v in frequencies[:count]
    ]
    return np.stack(rows).astype(np.float32)
