import numpy as np
import torch

from evlgen import miniworld
from evlgen.diagnostics import effective_rank
from evlgen.evaluation import soft_prompts as subject


def test_geometry_by_hand():
    prompts = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    words = torch.stack([torch.zeros(101), torch.arange(101.0)], 1).half()
    found = subject.geometry(prompts, words)
    assert found["mean"].tolist() == [[1.5, 2], [0.5, 1], [0, 0]]
    assert found["mean"].dtype == np.float32
    assert found["token_norms"].tolist() == [[5, 0], [1, 2], [0, 0]]
    assert found["word_norms"].tolist() == [0, 5, 25, 50, 75, 95, 100]
    assert float(found["word_norm_mean"]) == 50
    # the matrix is [[3, 4, 0, 0], [1, 0, 0, 2], 0]: squares of its singular values sum to 25 + 5
    assert found["singular_values"].shape == (3,)
    np.testing.assert_allclose((found["singular_values"] ** 2).sum(), 30)


def test_spectrum_is_that_of_the_effective_rank():
    prompts = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    share = subject.geometry(prompts, torch.ones(2, 4))["singular_values"]
    share = share / share.sum()
    np.testing.assert_allclose(np.exp(-(share * np.log(share)).sum()), effective_rank(prompts))


def test_the_main_object_is_the_one_seen_most():
    shapes, colours = subject.main_objects("coco_val", 20)
    several = 0
    for index in range(20):
        scene = miniworld.pool("coco_val").scene(index)
        seen = miniworld.object_masks(scene).sum((1, 2))
        most = [t for t, pixels in zip(scene.things, seen, strict=True) if pixels == seen.max()]
        assert (shapes[index], colours[index]) in [(t.shape, t.colour) for t in most]
        several += len(scene.things) > 1
    assert several > 5
