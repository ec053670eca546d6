"""`from_run` and the converter on the folder of a run as the command makes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evlgen.transformers_model
from evlgen.config import to_json
from evlgen.errors import UserError
from evlgen.interop import from_run
from evlgen.interop.convert import checkpoint_names
from evlgen.interop.convert import main as convert
from evlgen.interop.run_folders import read_run_config
from evlgen.runs.folder import CONFIG, CONNECTOR, OUTCOME, write_json


def test_a_run_captions_an_image(made: Path) -> None:
    assert evlgen.transformers_model.from_run is from_run
    model, processor, tokenizer = from_run(made)
    image = np.zeros((64, 64, 3), np.uint8)
    ids = model.generate(**processor(image, return_tensors="pt"))
    assert len(tokenizer.batch_decode(ids, skip_special_tokens=True)[0].split()) > 0
    trained = load_file(made / CONNECTOR)
    assert all(value.equal(model.caption_model.state_dict()[name].cpu()) for name, value in trained.items())


@pytest.mark.parametrize("name", [CONFIG, CONNECTOR, OUTCOME])
def test_one_flipped_bit_is_refused(copied: Path, name: str) -> None:
    from_run(copied)
    path = copied / name
    data = bytearray(path.read_bytes())
    place = data.index(b'"seed"') if name == CONFIG else len(data) * 3 // 4
    data[place + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: damaged"):
        from_run(copied)


def test_weights_that_nothing_vouches_for_are_refused(copied: Path) -> None:
    """An outcome that was put aside, or a configuration of another run beside these weights."""
    (copied / OUTCOME).rename(copied / f"{OUTCOME}.damaged")
    with pytest.raises(UserError, match="cannot be verified"):
        from_run(copied)
    (copied / f"{OUTCOME}.damaged").rename(copied / OUTCOME)
    config = read_run_config(copied / CONFIG)
    write_json(copied / CONFIG, to_json(dataclasses.replace(config, language="mini-llama")))
    with pytest.raises(UserError, match="another run's"):
        from_run(copied)


def test_a_checkpoint_of_its_weights_is_converted_to_a_folder_like_it(made: Path, tmp_path: Path) -> None:
    trained, config = load_file(made / CONNECTOR), read_run_config(made / CONFIG)
    state: dict[str, torch.Tensor] = {}
    for ours, keys in checkpoint_names(config.connector, "evlgen", "opt_proj").items():
        state |= dict(zip(keys, trained[ours].chunk(len(keys)), strict=True))
    key = "VLconnector.embeddings.token_type_embeddings.weight"
    state[key] = torch.cat([state[key], torch.zeros_like(state[key])])
    torch.save({"model": {name: value.clone() for name, value in state.items()}}, tmp_path / "theirs.pth")
    out = tmp_path / "out"
    assert convert([str(tmp_path / "theirs.pth"), str(out), "--config", str(made / CONFIG)]) == 0
    assert (out / CONFIG).read_bytes() == (made / CONFIG).read_bytes()
    first, second = (from_run(folder)[0].caption_model.state_dict() for folder in (made, out))
    assert all(value.equal(second[name]) for name, value in first.items())
