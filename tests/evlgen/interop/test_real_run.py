"""`from_run` and the converter on the folder of a run as the command makes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evlgen.transformers_model
from evlgen.backbones.pretrained import read_state
from evlgen.config import PoolConfig, QFormerConfig, RunConfig, to_json
from evlgen.errors import UserError
from evlgen.interop import from_run
from evlgen.interop.convert import main as convert
from evlgen.interop.run_folders import read_run_config
from evlgen.model import build_model, save_trained
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


@pytest.mark.parametrize("name", ["theirs.pth", "theirs.safetensors"])
def test_to_the_authors_form_and_back(
    made: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert([str(made), str(tmp_path / name)]) == 0
    assert "under the names of the authors' EVLGen" in capsys.readouterr().out
    keys = read_state(tmp_path / name).keys()
    assert {"VL_proj.weight", "ln_vision.bias", "opt_proj.weight"} <= keys
    assert "VLconnector.encoder.layer.0.attention.self.query.weight" in keys
    out = tmp_path / "out"
    assert convert([str(tmp_path / name), str(out), "--config", str(made / CONFIG)]) == 0
    assert (out / CONFIG).read_bytes() == (made / CONFIG).read_bytes()
    first, second = (load_file(folder / CONNECTOR) for folder in (made, out))
    assert all(value.equal(second[key]) for key, value in first.items())


@pytest.mark.parametrize("stage", ["caption", "represent"])
def test_a_q_former_to_lavis_and_back(tmp_path: Path, stage: Any) -> None:
    shape = {"width": 16, "num_layers": 2, "num_heads": 2, "intermediate": 32}
    config = RunConfig(QFormerConfig(encoder_width=96, num_queries=4, **shape), stage=stage)
    torch.manual_seed(0)
    save_trained(build_model(config), tmp_path / "run" / CONNECTOR, {})
    write_json(tmp_path / "run" / CONFIG, to_json(config))
    arguments = [
        str(tmp_path / "theirs.pth"),
        str(tmp_path / "out"),
        "--config",
        str(tmp_path / "run" / CONFIG),
    ]
    assert convert([str(tmp_path / "run"), arguments[0]]) == 0
    assert convert(arguments) == 0
    first, second = (load_file(tmp_path / folder / CONNECTOR) for folder in ("run", "out"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-6, atol=0)


def test_runs_that_have_no_published_form(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert([str(made), str(tmp_path / "folder")]) == 2
    assert "ends in .pth or .safetensors" in capsys.readouterr().err
    assert convert([str(made), str(tmp_path / "a.pth"), "--language", "opt-2.7b"]) == 2
    assert "--language: not used where a run's folder is converted" in capsys.readouterr().err
    config = RunConfig(PoolConfig(input_width=96))
    save_trained(build_model(config), tmp_path / "run" / CONNECTOR, {})
    write_json(tmp_path / "run" / CONFIG, to_json(config))
    assert convert([str(tmp_path / "run"), str(tmp_path / "a.pth")]) == 2
    assert "the connector 'pool' has no published form" in capsys.readouterr().err
