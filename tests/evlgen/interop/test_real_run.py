"""`from_run` and the converter on the folder of a run as the command makes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import GenerationConfig, pipeline

import evlgen.transformers_model
from evlgen import miniworld
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


def test_pipelines(made: Path, tmp_path: Path) -> None:
    """With the parts, and from a saved folder: captions, questions one by one and together, chats."""
    model, processor, _ = from_run(made)
    images = [Image.fromarray(miniworld.render(miniworld.pool("vqav2").scene(i))) for i in range(2)]
    images[0].save(tmp_path / "one.png")
    questions = ["What color is the ball?", "is it red?"]
    inputs = processor(images, text=questions, return_tensors="pt")
    answers = processor.batch_decode(model.generate(**inputs))
    captions = processor.batch_decode(model.generate(**processor(images, return_tensors="pt")))

    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    assert pipe(images[0], text="")[0]["generated_text"] == captions[0]
    assert pipe(images[0], text="", max_new_tokens=3)[0]["generated_text"] == " ".join(
        captions[0].split()[:3]
    )
    told = pipe(images, text=questions, return_full_text=False)
    assert [one["generated_text"] for one in told] == answers
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        for image, question in zip(images, questions, strict=True)
    ]
    told = pipe(text=chats, return_full_text=False, batch_size=2)
    assert [one[0]["generated_text"] for one in told] == answers
    with pytest.raises(UserError, match="shows 0 images"):
        pipe(text=[{"role": "user", "content": "is it red?"}])

    for part in (model, processor):
        part.save_pretrained(tmp_path / "whole")
    saved = pipeline("image-text-to-text", model=str(tmp_path / "whole"))
    told = saved(str(tmp_path / "one.png"), text=questions[0], return_full_text=False)
    assert told[0]["generated_text"] == answers[0]


def test_what_is_asked_of_generate_holds(made: Path) -> None:
    model, processor, tokenizer = from_run(made)
    run = read_run_config(made / CONFIG).evaluation
    assert model.generation_config.num_beams == run.beams
    assert model.generation_config.max_new_tokens == run.max_length
    images = [np.full((9, 9, 3), level, np.uint8) for level in (0, 255)]
    inputs = processor(images, return_tensors="pt")
    for limit in (
        {"max_new_tokens": 4},
        {"max_length": 4},
        {"generation_config": GenerationConfig(max_new_tokens=4)},
    ):
        assert model.generate(**inputs, **limit).shape == (2, 4)
    assert model.generate(**inputs, min_new_tokens=12, max_new_tokens=12).shape == (2, 12)
    asked = processor(images, text="what color is the ball?", return_tensors="pt")
    answers = model.generate(**asked)
    assert answers.shape[1] <= 10
    assert model.generate(**asked, min_new_tokens=15, max_new_tokens=15).shape == (2, 15)
    own = tokenizer([processor.question_prompt("what color is the ball?")] * 2, return_tensors="pt")
    assert own.input_ids[0, 0] == tokenizer.bos_token_id  # which the model puts elsewhere
    again = model.generate(inputs["pixel_values"], own.input_ids, own.attention_mask)
    assert again.equal(answers)
    assert model.generate(**asked, num_beams=2, num_return_sequences=2).shape[0] == 4
