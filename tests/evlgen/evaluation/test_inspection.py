"""On real runs of the smoke scale, trained for two updates."""

import dataclasses

import numpy as np
import pytest
import torch

from evlgen.config import DataConfig
from evlgen.cost import connector_macs
from evlgen.data.batches import load_training_data
from evlgen.diagnostics import effective_rank
from evlgen.evaluation import inspection as subject
from evlgen.evaluation import merge_maps
from evlgen.evaluation.decoding import load_captioner
from evlgen.runs.folder import CONNECTOR, MERGE_MAPS, SOFT_PROMPTS
from evlgen.runtime.arrays import read_arrays
from evlgen.training import train, untrained_model
from experiments.scales import blip2_single_stage, evlgen


def short(config):
    optim = dataclasses.replace(config.optim, steps=2, batch_size=4, warmup_steps=1, eval_every=2)
    data = DataConfig(pools=(("coco", 8),))
    evaluation = dataclasses.replace(config.evaluation, sets=(), validation=20)
    return dataclasses.replace(config, optim=optim, data=data, evaluation=evaluation, seed=3)


OURS, THEIRS = short(evlgen("smoke")), short(blip2_single_stage("smoke"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder and metrics of a run of each connector, and of the first one again."""
    patch = pytest.MonkeyPatch()
    patch.setenv("EVLGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
    found = {}
    for name, config in (("tomeformer", OURS), ("qformer", THEIRS), ("again", OURS)):
        folder = tmp_path_factory.mktemp(name)
        train(config, folder, load_training_data(config))
        torch.rand(3)  # whatever the generator has done before
        found[name] = (folder, subject.inspect(config, folder))
    yield found
    patch.undo()


def test_a_tomeformer_has_its_merge_maps(runs):
    folder, metrics = runs["tomeformer"]
    maps = read_arrays(folder / MERGE_MAPS)
    assert str(maps["pool"]) == "coco_val"
    assert maps["indices"].tolist() == list(range(8))
    assert (maps["labels"] == merge_maps.pool_labels("coco_val", 8, 8)).all()
    assert maps["labels"].dtype == np.int8
    for name in ("trained", "untrained"):
        assert maps[name].shape == (8, 17, 65)
        assert (maps[name].sum(1) == 1).all()
        assert (maps[name][:, 0, 1:] == 0).all()  # nothing is merged into the class token
    assert all(0 <= metrics[name] <= 1 for name in metrics if name.startswith("purity"))
    assert metrics["purity_objects_random"] < 0.2 < metrics["purity_random"]


def test_sources_are_those_of_the_trained_and_of_the_initial_connector(runs):
    folder, metrics = runs["tomeformer"]
    maps = read_arrays(folder / MERGE_MAPS)
    features = torch.from_numpy(load_training_data(OURS).validation.features[0].astype(np.float32))
    labels = merge_maps.pool_labels("coco_val", 20, 8)
    models = {"trained": load_captioner(OURS, folder), "untrained": untrained_model(OURS)}
    for (name, model), metric in zip(models.items(), ("purity", "purity_untrained"), strict=True):
        with torch.no_grad():
            source = model.eval().connector(model.norm(features), return_trace=True)[1].source.numpy()
        assert (source[:8] == maps[name]).all()
        assert metrics[metric] == merge_maps.purity(merge_maps.groups_of(source), labels).tokens


def test_a_qformer_has_none(runs):
    folder, metrics = runs["qformer"]
    assert metrics.keys() == {"connector_gmacs"}
    assert not (folder / MERGE_MAPS).exists()
    assert (folder / SOFT_PROMPTS).exists()


def test_macs_are_those_of_the_cost_tables(runs):
    for name, config in (("tomeformer", OURS), ("qformer", THEIRS)):
        assert runs[name][1]["connector_gmacs"] == connector_macs(config.connector, 65) / 1e9 > 0


def test_soft_prompts_are_those_of_the_validation_images(runs):
    for name, config, tokens in (("tomeformer", OURS, 17), ("qformer", THEIRS, 18)):
        found = read_arrays(runs[name][0] / SOFT_PROMPTS)
        model = load_captioner(config, runs[name][0])
        features = load_training_data(config).validation.features[0].astype(np.float32)
        with torch.no_grad():
            prompts = model.eval().soft_prompt(torch.from_numpy(features))
        np.testing.assert_allclose(found["mean"], prompts.mean(1).numpy(), atol=1e-5)
        assert found["token_norms"].shape == (20, tokens)
        share = found["singular_values"] / found["singular_values"].sum()
        assert np.exp(-(share * np.log(share)).sum()) == pytest.approx(effective_rank(prompts), rel=1e-4)
        assert found["shape"].shape == found["colour"].shape == found["indices"].shape == (20,)


def test_the_same_run_gives_the_same_bytes(runs):
    assert runs["tomeformer"][1] == runs["again"][1]
    for name in (CONNECTOR, MERGE_MAPS, SOFT_PROMPTS):
        first, second = ((runs[run][0] / name).read_bytes() for run in ("tomeformer", "again"))
        assert first == second
