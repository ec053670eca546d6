"""Linear probes: what the patches of a thing say of it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evlgen import miniworld
from evlgen.miniworld.pretrain.encoders import ATTRIBUTES, CHOICES, Encode, pixels_of


@torch.no_grad()
def thing_features(encode: Encode, first: int, last: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of every thing in the scenes ``first`` .. ``last`` of the pool ``probe``.

    Args:
        encode: (B, 3, H, W) pixels in 0..1 -> (B, 65, width) features.

    Returns:
        (T, width): the patch features averaged over the pixels that show the thing; and for each attribute
        the (T,) index of its value.
    """
    pool = miniworld.pool("probe")
    features, values = [], []
    for start in range(first, last, 100):
        scenes = [pool.scene(i) for i in range(start, min(last, start + 100))]
        pixels = pixels_of([miniworld.render(s) for s in scenes])
        for scene, patches in zip(scenes, encode(pixels)[:, 1:], strict=True):
            for thing, mask in zip(scene.things, miniworld.object_masks(scene), strict=True):
                if thing.shape in miniworld.CONTAINERS:
                    continue
                # (64, 64) pixels -> share of each of the 8 x 8 patches
                cover = torch.from_numpy(mask.reshape(8, 8, 8, 8).mean((1, 3)).reshape(64).astype(np.float32))
                features.append(cover / cover.sum() @ patches)
                values.append(
                    [({"shape": miniworld.SHAPES} | CHOICES)[n].index(getattr(thing, n)) for n in ATTRIBUTES]
                )
    columns = torch.tensor(values).T
    return torch.stack(features), dict(zip(ATTRIBUTES, columns, strict=True))


def linear_probe(train: Tensor, target: Tensor, test: Tensor, truth: Tensor) -> float:
    """Accuracy (percent) of multinomial logistic regression on standardised features."""
    mean, deviation = train.mean(0), train.std(0)
    one = [F.pad((x - mean) / deviation, (0, 1), value=1.0) for x in (train, test)]
    weights = torch.zeros(one[0].shape[1], int(target.max()) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(one[0] @ weights, target) + 1e-4 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return 100 * float(((one[1] @ weights).argmax(1) == truth).float().mean())
