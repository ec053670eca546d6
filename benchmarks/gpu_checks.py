"""Parts of ``benchmarks/gpu_check.py`` that ask whether the device computes what it should."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import steps
from benchmarks.gpu_found import Failed, Found, Precision, Row, Settings, judged, release
from benchmarks.machine import DTYPES
from evlgen.config import ConnectorConfig, LinearConfig, PerceiverConfig, PoolConfig, RunConfig
from evlgen.connector_base import Connector
from evlgen.connectors import build_connector, row_of
from evlgen.data.batches import StepBatches, load_training_data
from evlgen.interop import from_run
from evlgen.merging import bipartite_soft_matching
from evlgen.miniworld import pool
from evlgen.model import weights_checksum
from evlgen.runs import folder as files
from evlgen.runtime.device import same_bits
from evlgen.runtime.distributed import ALONE
from evlgen.runtime.files import sha256_of
from evlgen.runtime.progress import Progress, Stop
from evlgen.tomeformer import TomeFormer, TomeFormerTrace
from evlgen.training import _begin, _update, autocast, train
from experiments.scales import blip2_stage1, evlgen, get

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")

# ----------------------------------------------------------------------------------- the user's command


def smoke(settings: Settings) -> Found:
    """Table 2 at the scale smoke, through the command that a user types."""
    some = ["--rows", "EVLGen, OPT", "--set", "updates=0.2", "--seeds", "1"] if settings.tiny else []
    command = [sys.executable, "sweeps/run.py", "table2", "--scale", "smoke", *some]
    command += ["--device", settings.device, *(["--workers", "1"] if settings.tiny else [])]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-12:]
        raise Failed(Found(f"exit code {done.returncode}: {said[-1] if said else 'no word'}", notes=said))
    tables = Path(settings.work, "results").glob("table2*/smoke/table.csv")
    with max(tables, key=lambda path: path.stat().st_mtime).open() as file:
        cells = [row for row in csv.DictReader(file) if row["mean"]]
    rows: list[Row] = [
        {"row": cell["row"], "metric": cell["metric"], "mean": round(float(cell["mean"]), 2)}
        for cell in cells
        if "CIDEr" in cell["metric"]
    ]
    return judged(
        [] if rows else ["the table has no score"],
        Found(f"a table of {len({row['row'] for row in rows})} rows in {seconds:.0f} s", rows),
    )


# ------------------------------------------------------------------------------------------------ parity

OUTPUTS, GRADIENTS = 1e-3, 5e-3  # largest difference, in the largest value


def connectors_of(settings: Settings) -> list[ConnectorConfig]:
    """One of each kind."""
    if settings.tiny:
        return [
            *(steps.TINY["tomeformer"], steps.TINY["qformer"]),
            PerceiverConfig(input_width=16, num_latents=3, **steps.LAYERS),
            PoolConfig(input_width=16, rows=2, columns=3),
            LinearConfig(input_width=16, width=16),
            LinearConfig(input_width=16, width=24, num_layers=2),
        ]
    scale = get("paper")
    paper: list[ConnectorConfig] = [
        dataclasses.replace(scale.tomeformer, init="random"),
        dataclasses.replace(scale.qformer, init="random"),
    ]
    return [*paper, PerceiverConfig(), PoolConfig(), LinearConfig(), LinearConfig(width=2560, num_layers=2)]


def parity(settings: Settings) -> Found:
    """Each connector on the CPU and on the device: soft tokens and gradients, in fp32, without dropout.

    Where two links of a merge are equally good to the last digits, the device may take the other one, and
    everything behind differs: TomeFormer is compared on the images whose merges agree.
    """
    rows: list[Row] = []
    wrong = []
    for config in connectors_of(settings):
        title = row_of(config).title
        torch.manual_seed(0)
        ours = build_connector(config).eval()
        features = torch.randn(4, steps.TOKENS[settings.scale], config.input_width)
        there = build_connector(config).eval()
        there.load_state_dict(ours.state_dict())
        there.to(settings.on)
        same = agreeing(ours, there, features, settings.on)
        shown = features[same]
        expected, wanted = gradients(ours, shown)
        found, got = gradients(there, shown.to(settings.on))
        with torch.no_grad(), autocast(settings.on, settings.half):
            half = there(shown.to(settings.on)).float().cpu()
        row: Row = {
            "connector": title,
            "images with the same merges": f"{int(same.sum())} of {len(same)}",
            "outputs": difference(found, expected),
            "gradients": max((difference(got[name], wanted[name]) for name in wanted), default=0.0),
            f"outputs in {settings.half}": difference(half, expected),
        }
        rows.append(row)
        if not (row["outputs"] <= OUTPUTS and row["gradients"] <= GRADIENTS):
            wrong.append(f"{title}: outputs {row['outputs']:.1e}, gradients {row['gradients']:.1e}")
        if int(same.sum()) * 2 < len(same):
            wrong.append(f"{title}: merges differ in {len(same) - int(same.sum())} of {len(same)} images")
        if not bool(half.isfinite().all()):
            wrong.append(f"{title}: outputs in {settings.half} are not finite")
    notes = [
        f"Largest difference to the CPU in fp32, divided by the largest value; allowed are {OUTPUTS:g} of "
        f"the outputs and {GRADIENTS:g} of each parameter's gradient. Half precision only has to be finite: "
        "there merges differ."
    ]
    return judged(wrong, Found(f"{len(rows)} connectors agree with the CPU", rows, notes))


def agreeing(ours: Connector, there: Connector, features: Tensor, device: torch.device) -> Tensor:
    """(B,) bool: the images whose merges are the same in all layers."""
    same = torch.ones(len(features), dtype=torch.bool)
    if isinstance(ours, TomeFormer):
        with torch.no_grad():
            traces = [ours(features, True)[1], there(features.to(device), True)[1]]
        first, second = traces
        assert isinstance(first, TomeFormerTrace)
        for mine, other in zip(first.matchings, second.matchings, strict=True):
            same &= (mine.destination == other.destination.cpu()).all(1)
    return same


def gradients(module: nn.Module, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs, and the gradient of a loss on them for each parameter and for the features, on the CPU."""
    features = features.clone().requires_grad_()
    output: Tensor = module(features)
    output[..., : output.shape[-1] // 2].square().mean().backward()
    assert features.grad is not None
    found = {name: p.grad.cpu() for name, p in module.named_parameters() if p.grad is not None}
    return output.detach().cpu(), {**found, "features": features.grad.cpu()}


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference in the largest value."""
    scale = float(expected.abs().max())
    return float((found - expected).abs().max()) / max(scale, 1e-12)


# --------------------------------------------------------------------------------------------- training


def runs_of(settings: Settings) -> list[tuple[str, RunConfig]]:
    """One run of each stage, of the miniature; in tiny shapes EVLGen's alone."""
    runs = [("EVLGen", evlgen("smoke")), ("BLIP-2, stage 1", blip2_stage1("smoke"))]
    return runs[: 1 if settings.tiny else 2]


def short(config: RunConfig, precision: Precision, updates: int = 6) -> RunConfig:
    """A run of a few updates."""
    half = updates // 2
    optim = dataclasses.replace(
        config.optim, steps=updates, warmup_steps=2, eval_every=updates, checkpoint_every=half
    )
    return dataclasses.replace(config, optim=dataclasses.replace(optim, precision=precision))


def fresh(settings: Settings, name: str) -> Path:
    """An empty folder for a run."""
    folder = Path(settings.work, "trained", name)
    for file in folder.glob("*"):
        file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def precision(settings: Settings) -> Found:
    """A few updates of EVLGen and of BLIP-2's stage 1 in each precision: losses are finite and alike."""
    same_bits()
    rows: list[Row] = []
    wrong = []
    for title, run in runs_of(settings):
        first = math.nan
        for name in DTYPES:
            if name == "fp16" and settings.device == "cpu":
                rows.append({"run": title, "precision": name, "first loss": "needs a GPU", "last loss": ""})
                continue
            config = short(run, name)  # type: ignore[arg-type]  # the keys of DTYPES
            folder = fresh(settings, f"{config.stage}-{name}")
            train(config, folder, load_training_data(config))
            lines = files.read_metrics(folder)
            losses = [line["loss"] for line in lines]
            first = losses[0] if name == "fp32" else first
            rows.append(
                {
                    "run": title,
                    "precision": name,
                    "first loss": round(losses[0], 4),
                    "last loss": round(losses[-1], 4),
                    "loss scale": lines[-1].get("loss_scale", ""),
                }
            )
            if not all(map(math.isfinite, losses)):
                wrong.append(f"{title} in {name}: the losses are {losses}")
            elif abs(losses[0] - first) > 0.02 * first:
                wrong.append(f"{title} in {name}: begins at {losses[0]:.4f}, in fp32 at {first:.4f}")
    for row in rows:
        row.setdefault("loss scale", "")
    notes = ["The first loss may be 2% from that in fp32."]
    return judged(wrong, Found("finite losses, as in fp32", rows, notes))


def resume(settings: Settings) -> Found:
    """A run that is stopped and resumed ends with the bits of one that was not; so do steps done twice."""
    same_bits()
    rows: list[Row] = []
    wrong = []
    for title, run in runs_of(settings):
        config = short(run, settings.half)
        data = load_training_data(config)
        whole, parted = fresh(settings, f"{config.stage}-whole"), fresh(settings, f"{config.stage}-parted")
        train(config, whole, data)

        def stop(progress: Progress) -> None:
            if progress.phase == "train" and progress.step == 3:
                raise Stop

        with contextlib.suppress(Stop):
            train(config, parted, data, stop)
        resumed = train(config, parted, data)["resumed_from"]
        hashes = [sha256_of(folder / files.CONNECTOR)[:16] for folder in (whole, parted)]
        rows.append({"what": f"{title}, resumed at update {resumed:.0f}", "bits": verdict(*hashes)})
        if hashes[0] != hashes[1] or not 0 < resumed < config.optim.steps:
            wrong.append(f"{title}: resumed at {resumed:.0f}, {hashes[1]} is not {hashes[0]}")
    for name in steps.TINY:
        case = steps.Case(name, settings.scale, min(settings.batch, 64), settings.half)  # type: ignore[arg-type]
        first, second = (bits_after(case, settings.on, 3) for _ in range(2))
        rows.append(
            {"what": f"3 steps of the {name}, {settings.scale} shapes", "bits": verdict(first, second)}
        )
        if first != second:
            wrong.append(f"{name}: 3 steps in {settings.scale} shapes give other bits the second time")
        release(settings.on)
    return judged(wrong, Found("the same bits", rows))


def verdict(first: str, second: str) -> str:
    return "the same" if first == second else f"{first} and {second}"


def bits_after(case: steps.Case, device: torch.device, updates: int) -> str:
    """Hash of a connector's weights after some steps."""
    torch.manual_seed(0)
    module = build_connector(case.config).to(device).train()
    features = case.features(CPU).to(device)
    step = steps.stepper(module, features, case.precision)
    for _ in range(updates):
        step()
    return weights_checksum(module)[:16]


# ------------------------------------------------------------------------------------------- generating


def generate(settings: Settings) -> Found:
    """A run of the part ``smoke`` as a transformers model: captions in half precision and in fp32."""
    runs = [folder for folder in sorted(Path(settings.work, "runs").glob("*")) if is_captioner(folder)]
    if not runs:
        raise Failed(Found("there is no trained run: the part smoke makes it"))
    model, processor, tokenizer = from_run(str(runs[0]))
    shown = [Image.fromarray(pool("coco_test").image(index)) for index in range(4)]
    inputs = processor(shown, return_tensors="pt")
    pixels = inputs["pixel_values"].to(settings.on)
    texts = []
    for dtype in (torch.float32, DTYPES[settings.half]):
        model.to(settings.on, dtype)  # type: ignore[arg-type]  # typed as a function of transformers
        with torch.no_grad():
            ids = model.generate(pixel_values=pixels.to(dtype))
        texts.append([text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)])
    rows: list[Row] = [
        {"image": index, "fp32": full, settings.half: half}
        for index, (full, half) in enumerate(zip(*texts, strict=True))
    ]
    equal = sum(full == half for full, half in zip(*texts, strict=True))
    return judged(
        [] if all(texts[1]) else ["a caption is empty"],
        Found(f"{equal} of {len(rows)} captions in {settings.half} equal those in fp32", rows),
    )


def is_captioner(folder: Path) -> bool:
    config = files.read_config(folder)
    return config is not None and config.stage == "caption" and (folder / files.CONNECTOR).exists()


# ---------------------------------------------------------------------------------------------- graphs


def graphs(settings: Settings) -> Found:
    """Nothing in a step waits for the device; merging is one graph for torch.compile and for CUDA."""
    rows: list[Row] = []
    wrong = []
    device, tokens, r = settings.on, steps.TOKENS[settings.scale], 3 if settings.tiny else 19
    torch.manual_seed(0)
    x, metric = (torch.randn(8, tokens, width, device=device) for width in (32, 16))

    def merged(values: Tensor, keys: Tensor) -> Tensor:
        return bipartite_soft_matching(keys, r).merge(values)

    backend = "aot_eager" if settings.device == "cpu" else "inductor"
    compiled = torch.compile(merged, fullgraph=True, backend=backend)
    error = difference(compiled(x, metric), merged(x, metric))
    rows.append(
        {"what": f"merging, torch.compile ({backend}), one graph", "found": f"difference {error:.1e}"}
    )
    if error > OUTPUTS:
        wrong.append(f"compiled merging differs by {error:.1e}")
    if settings.device == "cpu":
        left = ("merging as a CUDA graph", "an update without a wait")
        rows += [{"what": what, "found": "needs a GPU"} for what in left]
        return judged(wrong, Found("merging is one graph", rows))
    error = captured(merged, x, metric)
    rows.append(
        {"what": "merging as a CUDA graph, replayed on other tokens", "found": f"difference {error:.1e}"}
    )
    if error > OUTPUTS:
        wrong.append(f"merging replayed as a CUDA graph differs by {error:.1e}")
    for title, run in runs_of(settings):
        waited = waits_of(short(run, "fp16"), device)
        rows.append({"what": f"an update of {title}", "found": waited or "no wait"})
        if waited:
            wrong.append(f"{title}: {waited}")
    return judged(wrong, Found("merging is one graph, no update waits for the device", rows))


def captured(function: Callable[..., Tensor], *inputs: Tensor) -> float:
    """Difference between a CUDA graph of the function, replayed on other values, and the function."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*inputs)
    for tensor in inputs:
        tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    return difference(output.cpu(), function(*inputs).cpu())


def waits_of(config: RunConfig, device: torch.device) -> str:
    """What an update waits for, or nothing. The second one: the first fills caches."""
    same_bits()
    data = load_training_data(config)
    state = _begin(config, None, device, None, ALONE)
    batches = [data.source.batch(0, step, config.optim.batch_size).to(device) for step in range(2)]
    for number, batch in enumerate(batches):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            _update(state, StepBatches([batch], None), config, device, ALONE, wants_norm=True)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return ""
