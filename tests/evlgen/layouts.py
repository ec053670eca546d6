"""The layouts of data sets that people have, made of the one that `tests.evlgen.real_sets` writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.evlgen import real_sets


def move(root: Path, **places: str) -> None:
    """Rename files and folders, old place -> new place."""
    for old, new in places.items():
        target = root / new
        aside = shutil.move(root / old, root / "aside")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(aside, target)


def lavis(root: Path) -> None:
    """Rewrite COCO, Flickr30K and GQA as LAVIS has them, in its folders."""
    karpathy = json.loads((root / "coco/dataset_coco.json").read_text())["images"]
    for split, names in (("train", ("train", "restval")), ("val", ("val",)), ("test", ("test",))):
        chosen = [image for image in karpathy if image["split"] in names]
        listed = []
        for image in chosen:
            path, said = f"{image['filepath']}/{image['filename']}", [s["raw"] for s in image["sentences"]]
            if split == "train":
                listed += [
                    {"caption": text, "image": path, "image_id": f"coco_{image['cocoid']}"} for text in said
                ]
            else:
                listed.append({"image": path, "caption": said})
        real_sets.dump(root / f"coco/annotations/coco_karpathy_{split}.json", listed)
    (root / "coco/dataset_coco.json").unlink()
    flickr = json.loads((root / "flickr30k/dataset_flickr30k.json").read_text())["images"]
    tested = [image for image in flickr if image["split"] == "test"]
    real_sets.dump(
        root / "flickr30k/annotations/test.json",
        [
            {"image": f"flickr30k-images/{i['filename']}", "caption": [s["raw"] for s in i["sentences"]]}
            for i in tested
        ],
    )
    (root / "flickr30k/dataset_flickr30k.json").unlink()
    gqa = json.loads((root / "gqa/testdev_balanced_questions.json").read_text())
    real_sets.dump(
        root / "gqa/annotations/testdev_balanced_questions.json",
        [
            {
                "image": f"{q['imageId']}.jpg",
                "question": q["question"],
                "answer": q["answer"],
                "question_id": k,
            }
            for k, q in gqa.items()
        ],
    )
    (root / "gqa/testdev_balanced_questions.json").unlink()
    move(
        root,
        **{
            "coco/train2014": "coco/images/train2014",
            "coco/val2014": "coco/images/val2014",
            "flickr30k/images": "flickr30k/images/flickr30k-images",
            "nocaps/images": "nocaps/val",
            "nocaps/nocaps_val_4500_captions.json": "nocap/annotations/nocaps_val_4500_captions.json",
        },
    )
    for name in ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"):
        move(root, **{f"vqav2/{name}": f"coco/annotations/{name}"})
    for name in ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"):
        move(root, **{f"okvqa/{name}": f"okvqa/annotations/{name}"})
    move(root, **{"ccs-14m": "ccs_synthetic_filtered_large"})


def unpacked(root: Path) -> None:
    """Everything where the archives put it, unpacked in one folder."""
    move(
        root,
        **{
            "coco/dataset_coco.json": "dataset_coco.json",
            "flickr30k/dataset_flickr30k.json": "dataset_flickr30k.json",
            "coco/train2014": "train2014",
            "coco/val2014": "val2014",
            "flickr30k/images": "flickr30k-images",
            "gqa/testdev_balanced_questions.json": "testdev_balanced_questions.json",
            "nocaps/nocaps_val_4500_captions.json": "nocaps_val_4500_captions.json",
            "nocaps/images": "nocaps/validation",
        },
    )
    for name in ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"):
        move(root, **{f"vqav2/{name}": name})


def elsewhere(root: Path) -> None:
    """On other disks, which data.toml names."""
    other = root.parent / "other disk"
    shutil.move(root, other)
    root.mkdir()
    (root / "link").symlink_to(other / "gqa/images")
    move(other, **{"coco/dataset_coco.json": "lists/splits.json", "laion-115m": "web"})
    (root / "data.toml").write_text(
        "\ufeff"
        f"""
        [coco]
        annotations = "../other disk/lists/splits.json"
        images = "{other}/coco/"

        [vqav2]
        questions = "../other disk/vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
        annotations = "../other disk/vqav2/v2_mscoco_val2014_annotations.json"

        [okvqa]
        questions = "../other disk/okvqa/OpenEnded_mscoco_val2014_questions.json"
        annotations = "../other disk/okvqa/mscoco_val2014_annotations.json"

        [gqa]
        questions = "{other}/gqa/testdev_balanced_questions.json"
        images = "link"

        [nocaps]
        annotations = "{other}/nocaps/nocaps_val_4500_captions.json"
        images = "{other}/nocaps"

        [flickr30k]
        annotations = "{other}/flickr30k/dataset_flickr30k.json"
        images = "../other disk/flickr30k/images"

        [pools]
        laion-115m = "../other disk/web"
        ccs-14m = "../other disk/ccs-14m/ccs_synthetic_filtered_large.json"
        more = "../other disk/web"
        """,
        encoding="utf-8",
    )


def files(folder: Path, ends=(".txt",), shards=(3, 2), first=400) -> None:
    """As img2dataset writes with ``output_format=files``."""
    number = first
    for shard, size in enumerate(shards):
        for place in range(size):
            key = folder / f"{shard:05d}/{shard:05d}{place:04d}"
            real_sets.save(key.with_suffix(".jpg"), real_sets.jpeg(number))
            if ".txt" in ends:
                real_sets.save(key.with_suffix(".txt"), real_sets.caption(number).encode())
            if ".json" in ends:
                about = {"caption": real_sets.caption(number), "url": "http://example.org", "key": key.name}
                real_sets.dump(key.with_suffix(".json"), about)
            number += 1
        real_sets.dump(folder / f"{shard:05d}_stats.json", {"count": size, "successes": size})
        real_sets.save(folder / f"{shard:05d}.parquet", b"PAR1")
