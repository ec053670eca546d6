"""The real data sets in their true formats and of the smallest size, written below a folder."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BertConfig, BertTokenizer, CLIPVisionConfig, CLIPVisionModel

COCO = {"train": 6, "restval": 2, "val": 6, "test": 4}
DOMAINS = {"in-domain": 2, "near-domain": 3, "out-domain": 1}
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 160, 20), "pink": (240, 130, 190)}


def jpeg(number: int, form: str = "JPEG", size: tuple[int, int] = (40, 32)) -> bytes:
    """A noisy image of one colour; width and height as given."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 30, (size[1], size[0], 3)) + list(COLOURS.values())[number % 4]
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, form)
    return content.getvalue()


def caption(number: int) -> str:
    return f"A {list(COLOURS)[number % 4]} ball, on the grass (no. {number})."


def write(root: Path) -> Path:
    """All sets of the paper scale."""
    coco(root / "coco")
    vqa(root)
    gqa(root / "gqa")
    nocaps(root / "nocaps")
    flickr(root / "flickr30k")
    sets_for_testing(root)
    shards(root / "laion-115m", (5, 4))
    lists(root / "ccs-14m", 5)
    return root


def coco(folder: Path) -> None:
    images: list[dict[str, Any]] = []
    for split, count in COCO.items():
        for _ in range(count):
            number = len(images)
            place = "train2014" if split == "train" else "val2014"
            name = f"COCO_{place}_{number:012d}.jpg"
            said = [{"raw": caption(number)}, {"raw": f"Another  view of image {number}!"}]
            images.append(
                {"filepath": place, "filename": name, "split": split, "cocoid": number, "sentences": said}
            )
            save(folder / place / name, jpeg(number))
    dump(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


def vqa(root: Path) -> None:
    """VQAv2 and OK-VQA on the images of COCO's val2014, whose numbers begin behind those of train2014."""
    numbers = range(COCO["train"], sum(COCO.values()))
    for name, files, verb in (
        ("vqav2", ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"), "is"),
        ("okvqa", ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"), "was"),
    ):
        asked = [
            {"image_id": n, "question_id": 10 * n + i, "question": f"What colour {verb} ball {i}?"}
            for n in numbers
            for i in range(2)
        ]
        told = [
            {
                "question_id": question["question_id"],
                "image_id": question["image_id"],
                "answer_type": "other",
                "answers": [{"answer_id": i, "answer": colour_of(question["image_id"])} for i in range(10)],
            }
            for question in reversed(asked)  # their order must not matter
        ]
        dump(root / name / files[0], {"questions": asked})
        dump(root / name / files[1], {"annotations": told})


def colour_of(number: int) -> str:
    return list(COLOURS)[number % 4]


def gqa(folder: Path) -> None:
    questions = {
        f"20{n}": {"imageId": f"n{n}", "question": "What is this?", "answer": "ball"} for n in range(3)
    }
    dump(folder / "testdev_balanced_questions.json", questions)
    for n in range(3):
        save(folder / "images" / f"n{n}.jpg", jpeg(50 + n))


def nocaps(folder: Path) -> None:
    images, annotations = [], []
    for domain, count in DOMAINS.items():
        for _ in range(count):
            number = len(images)
            images.append({"id": number, "file_name": f"{number:04d}.jpg", "domain": domain})
            annotations += [
                {"image_id": number, "id": 0, "caption": f"{caption(number)} {i}"} for i in range(3)
            ]
            save(folder / "images" / f"{number:04d}.jpg", jpeg(80 + number))
    dump(folder / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})


def sets_for_testing(root: Path) -> None:
    """Those whose captions and answers only their makers have."""
    images = [{"id": 100 + n, "file_name": f"t{n}.jpg", "open_images_id": f"t{n}"} for n in range(3)]
    dump(root / "nocaps/nocaps_test_image_info.json", {"images": images})
    for image in images:
        save(root / "nocaps/test" / str(image["file_name"]), jpeg(90 + int(str(image["id"]))))
    for split, count in (("test-dev", 2), ("test", 4)):
        asked = [
            {"image_id": 1000 + n // 2, "question_id": 10_000 + n, "question": f"What colour is ball {n}?"}
            for n in range(count)
        ]
        dump(root / f"vqav2/v2_OpenEnded_mscoco_{split}2015_questions.json", {"questions": asked})
    for number in (1000, 1001):
        save(root / f"coco/test2015/COCO_test2015_{number:012d}.jpg", jpeg(number))


def flickr(folder: Path) -> None:
    images = []
    for number, split in enumerate(("train", "test", "val", "test", "test")):
        images.append(
            {"filename": f"{number}.jpg", "split": split, "sentences": [{"raw": caption(number)}] * 5}
        )
        save(folder / "images" / f"{number}.jpg", jpeg(100 + number))
    dump(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})


def shards(folder: Path, sizes: Iterable[int], first: int = 200) -> None:
    """As img2dataset writes them; a pair in two has its caption in the .json alone."""
    folder.mkdir(parents=True)
    number = first
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for place in range(size):
                key = f"{shard:05d}{place:04d}"
                add(tar, f"{key}.jpg", jpeg(number))
                about = {"caption": caption(number), "url": "http://example.org", "status": "success"}
                add(tar, f"{key}.json", json.dumps(about).encode())
                if number % 2:
                    add(tar, f"{key}.txt", caption(number).encode())
                number += 1
        dump(folder / f"{shard:05d}_stats.json", {"count": size})  # img2dataset leaves these, too


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def lists(folder: Path, size: int, first: int = 300) -> None:
    pairs = []
    for number in range(first, first + size):
        save(folder / "images" / f"{number}.jpg", jpeg(number))
        pairs.append({"image": f"images/{number}.jpg", "caption": caption(number) + ' {"ü"}'})
    dump(folder / "ccs_synthetic_filtered_large.json", pairs)


def own_folder(folder: Path, size: int) -> None:
    """One's own images, without splits."""
    said = [{"file": f"{n}.png", "caption": caption(n)} for n in range(size)]
    lines(folder / "captions.jsonl", said)
    asked = [
        {"file": f"{n}.png", "question": "What colour is it?", "answer": colour_of(n)} for n in range(size)
    ]
    lines(folder / "questions.jsonl", asked)
    for n in range(size):
        save(folder / f"{n}.png", jpeg(n, "PNG"))


def lines(path: Path, entries: Iterable[object]) -> None:
    save(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def dump(path: Path, content: object) -> None:
    save(path, json.dumps(content).encode())


def save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def clip(path: Path) -> Path:
    """A tiny image encoder in the format of CLIP: 28 x 28 pixels, 17 tokens of width 24."""
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4}
    config = CLIPVisionConfig(**shape, num_hidden_layers=3, image_size=28, patch_size=7)
    model = CLIPVisionModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    return path


def bert(path: Path) -> BertTokenizer:
    """A folder with a small vocabulary in the format of BERT; returns its tokenizer."""
    path.mkdir(parents=True)
    words = f"{caption(0)} ball , no {' '.join(COLOURS)}".lower().replace(".", " ").split()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (path / "vocab.txt").write_text("\n".join([*special, *dict.fromkeys(words)]) + "\n")
    BertConfig(vocab_size=len(special) + len(set(words))).save_pretrained(path)
    tokenizer = BertTokenizer.from_pretrained(path)
    tokenizer.save_pretrained(path)
    return tokenizer
