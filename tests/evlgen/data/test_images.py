"""Images keep their contents in every mode, depth, orientation and size, and are opened safely."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from evlgen.data.images import (
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    UnreadableImage,
    as_rgb,
    augmented,
    decode,
    open_image,
    resized,
)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def picture(width: int = 24, height: int = 16) -> Image.Image:
    """Smooth colours, each corner another one, so that JPEG and palettes keep them."""
    down, across = np.mgrid[0:height, 0:width]
    red, green = 255 * across // max(1, width - 1), 255 * down // max(1, height - 1)
    return Image.fromarray(np.dstack([red, green, 255 - red]).astype(np.uint8))


def difference(found: object, wanted: object) -> float:
    found, wanted = np.asarray(found).astype(float), np.asarray(wanted).astype(float)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())


# ------------------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize(
    ("mode", "form", "tolerance"),
    [
        ("RGB", "PNG", 0),
        ("RGB", "BMP", 0),
        ("RGB", "TIFF", 0),
        ("RGBA", "PNG", 0),
        ("RGBA", "TIFF", 0),
        ("RGBX", "TIFF", 0),
        ("CMYK", "TIFF", 1),
        ("CMYK", "JPEG", 12),  # Adobe's, stored inverted
        ("YCbCr", "TIFF", 4),
        ("YCbCr", "JPEG", 12),
        ("LAB", "TIFF", 40),
        ("P", "PNG", 64),
        ("P", "GIF", 64),
        ("RGB", "WEBP", 16),
    ],
)
def test_colours_are_kept_in_every_mode(mode, form, tolerance):
    original = picture()
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(original, *profiles, outputMode="LAB")
    elif mode == "RGBX":
        image = Image.frombytes("RGBX", original.size, original.convert("RGBA").tobytes())
    else:
        image = original.convert(mode)
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"quality": 98}}.get(form, {})
    content = saved(image, form, **options)
    opened = Image.open(io.BytesIO(content))
    assert opened.mode in (mode, "RGB", "P"), "the file has another mode than it is to be tested with"
    if mode in ("CMYK", "LAB", "RGBA"):
        assert opened.mode == mode
    assert difference(decode(content, "a"), original) <= tolerance
    assert difference(as_rgb(Image.open(io.BytesIO(content))), decode(content, "a")) == 0


@pytest.mark.parametrize("mode", ["HSV", "LAB", "La", "RGBa", "PA", "LA", "1", "L", "P"])
def test_images_in_memory_are_taken_in_every_mode(mode):
    grey = picture().convert("L")
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(picture(), *profiles, outputMode="LAB")
        assert difference(as_rgb(image), picture()) <= 40  # of eight bits each, dark blues are coarse
    elif mode == "HSV":
        assert difference(as_rgb(picture().convert("HSV")), picture()) <= 6
    elif mode in ("La", "RGBa"):
        image = picture().convert("RGBA" if mode == "RGBa" else "LA")
        wanted = picture() if mode == "RGBa" else grey.convert("RGB")
        assert difference(as_rgb(image.convert(mode)), wanted) == 0
    elif mode == "PA":
        image = grey.convert("P").convert("PA")
        image.putalpha(Image.new("L", grey.size, 0))
        assert np.asarray(as_rgb(image)).min() == 255
    elif mode == "1":
        assert (
            difference(
                as_rgb(grey.point(lambda v: 255 * (v > 99), "1")),
                grey.point(lambda v: 255 * (v > 99)).convert("RGB"),
            )
            == 0
        )
    else:
        assert difference(as_rgb(grey.convert(mode)), grey.convert("RGB")) == 0


def png(width: int, height: int, bits: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of raw rows, each with its filter byte in front."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def rows_of(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_sixteen_bits_of_grey_and_colour_become_eight(width, height, random):
    values = np.array([random.randrange(65536) for _ in range(3 * width * height)], ">u2")
    grey = values[: width * height].reshape(height, width)
    colour = values.reshape(height, width, 3)
    wanted = np.rint(grey.astype(float) / 257)
    assert difference(decode(png(width, height, 16, 0, rows_of(grey)), "a")[..., 0], wanted) == 0
    found = decode(png(width, height, 16, 2, rows_of(colour)), "a")
    assert difference(found, colour.astype(float) / 257) <= 1
    for order in ("<", ">"):
        content = saved(Image.fromarray(grey.astype(f"{order}u2")), "TIFF")
        assert difference(decode(content, "a")[..., 1], wanted) == 0
        assert difference(np.asarray(as_rgb(Image.fromarray(grey.astype(f"{order}u2"))))[..., 2], wanted) == 0


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_every_byte_order_of_sixteen_bits(mode):
    values = np.linspace(0, 65535, 256).astype("<u2" if mode in ("I;16", "I;16L", "I;16N") else ">u2")
    image = Image.frombytes(mode, (16, 16), values.tobytes())
    assert difference(np.asarray(as_rgb(image))[..., 0].ravel(), np.arange(256)) <= 1


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.linspace(0, 255, 64).astype(np.int32), np.linspace(0, 255, 64).astype(int)),
        (np.linspace(0, 65535, 64).astype(np.int32), np.linspace(0, 255, 64)),
        (np.linspace(-(2**31), 2**31 - 1, 64).astype(np.int32), np.linspace(0, 255, 64)),
        (np.linspace(0, 2**32 - 1, 64).astype(np.uint32), np.linspace(0, 255, 64)),
        (np.linspace(0, 1, 64).astype(np.float32), np.linspace(0, 255, 64)),
        (np.linspace(0, 255, 64).astype(np.float32), np.linspace(0, 255, 64)),
        (np.linspace(-3, 5e6, 64).astype(np.float32), np.linspace(0, 255, 64)),
    ],
)
def test_tiffs_of_thirty_two_bits_are_not_cut_off(values, wanted):
    content = saved(
        Image.fromarray(
            values.view(np.int32).reshape(8, 8) if values.dtype == np.uint32 else values.reshape(8, 8)
        ),
        "TIFF",
    )
    if values.dtype == np.uint32:  # PIL writes them as signed
        tag = struct.pack("<HHIHH", 0x153, 3, 1, 2, 0)
        assert content.count(tag) == 1
        content = content.replace(tag, struct.pack("<HHIHH", 0x153, 3, 1, 1, 0))
    found = decode(content, "a")
    assert difference(found[..., 0].ravel(), wanted) <= 1


def test_what_is_not_a_number_is_black():
    values = np.array([[0, np.nan, 1, -np.inf, np.inf]], np.float32)
    assert np.asarray(as_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 255, 0, 255]
    with pytest.raises(UnreadableImage, match="none of its values is a number"):
        decode(saved(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "a")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["F", "RGBA"])
def test_a_large_image_takes_a_moderate_amount_of_memory(mode):
    script = (
        "import io, resource; from PIL import Image; from evlgen.data.images import decode\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        f"image, content = Image.new({mode!r}, (9000, 9000)), io.BytesIO()\n"
        "image.save(content, 'TIFF', compression='tiff_deflate'); before = peak(); image.close(); del image\n"
        "decode(content.getvalue(), 'a'); print(peak() - before)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(said.stdout) < 1800  # MiB


# --------------------------------------------------------------------------------------- transparency


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.binary(min_size=256, max_size=256))
def test_transparency_is_laid_on_white(width, height, content):
    pixels = np.frombuffer(content, np.uint8)[: 4 * width * height].reshape(height, width, 4)
    alpha = pixels[..., 3:] / 255
    wanted = pixels[..., :3] * alpha + 255 * (1 - alpha)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert difference(decode(saved(Image.fromarray(pixels), form, **options), "a"), wanted) <= 1
    grey = Image.merge("LA", [Image.fromarray(pixels[..., 0].copy()), Image.fromarray(pixels[..., 3].copy())])
    assert difference(decode(saved(grey), "a")[..., 0], wanted[..., 0]) <= 1


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palette_with_transparency_is_laid_on_white(form):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 1), 1)
    assert decode(saved(image, form), "a")[0, 0].tolist() == [10, 20, 30]
    found = decode(saved(image, form, transparency=0), "a")
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [200, 100, 50]
    if form == "PNG":  # an alpha for each colour
        found = decode(saved(image, transparency=bytes([255, 0])), "a")
        assert found[[0, 1], [0, 1]].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize(
    ("bits", "kind", "row", "key", "wanted"),
    [
        (1, 0, b"\x80", b"\0\1", [255, 0]),  # white is transparent, and laid on white
        (1, 0, b"\x80", b"\0\0", [255, 255]),
        (4, 0, b"\xf3", b"\0\3", [255, 255]),
        (8, 0, b"\x50\x60", b"\0\x50", [255, 0x60]),
        (16, 0, b"\x50\x01\x50\x00", b"\x50\x01", [255, 0x50]),
        (8, 2, b"\x50\x50\x50\x60\x60\x60", b"\0\x50\0\x50\0\x50", [255, 0x60]),
        (16, 2, b"\x50\x01" * 3 + b"\x60\0" * 3, b"\x50\x01" * 3, [255, 0x60]),
        (16, 2, b"\x00\x05" * 3 + b"\x60\0" * 3, b"\x00\x05" * 3, [255, 0x60]),
    ],
)
def test_one_colour_that_is_transparent_is_laid_on_white(bits, kind, row, key, wanted):
    content = png(2, 1, bits, kind, b"\0" + row, (b"tRNS", key))
    assert decode(content, "a")[0, :, 0].tolist() == wanted


# ------------------------------------------------------------------------------------------ orientation


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(form, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"quality": 98} if form in ("JPEG", "WEBP") else {}
    content = saved(picture(), form, exif=exif, **options)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert difference(decode(content, "a"), wanted) == 0
    assert difference(as_rgb(open_image(content)), wanted) == 0  # not turned again
    assert wanted.size == ((24, 16) if orientation < 5 else (16, 24))
    turned = np.asarray(picture())
    turned = {1: turned, 2: turned[:, ::-1], 3: turned[::-1, ::-1], 4: turned[::-1]}.get(orientation)
    if turned is not None:
        assert difference(wanted, turned) <= 20


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_does_not_cost_the_image(exif):
    assert decode(saved(picture(), "JPEG", exif=exif), "a").shape == (16, 24, 3)


# ------------------------------------------------------------------------------------------ size, frames


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (65535, 1), (2, 50000)])
def test_images_of_any_shape(size):
    found = decode(saved(Image.new("RGB", size, (1, 2, 3))), "a")
    assert found.shape == (size[1], size[0], 3)
    assert resized(found, 32).shape == augmented(found, 32, True, 1, 2).shape == (32, 32, 3)
    assert (augmented(found, 32, False, 1) == [1, 2, 3]).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_taken(form):
    first, second = Image.new("RGB", (6, 5), (250, 0, 0)), Image.new("RGB", (6, 5), (0, 0, 250))
    options = {"lossless": True} if form == "WEBP" else {}
    content = saved(first, form, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert (decode(content, "a") == [250, 0, 0]).all()


# --------------------------------------------------------------------------------------------- safety


def test_no_other_program_is_started(tmp_path):
    called = tmp_path / "called"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\necho called >> {called}\nexit 1\n")
    program.chmod(0o755)
    script = (
        "import sys; from evlgen.data.images import *\n"
        "content = b'%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 10 10\\n%%EndComments\\n'\n"
        "try: decode(content, 'x.jpg')\n"
        "except UnreadableImage as error: print(error)\n"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert said.stdout.startswith("x.jpg: damaged, or not in one of the formats JPEG, PNG"), said.stderr
    assert not called.exists()


@pytest.mark.parametrize(
    "form", ["PPM", "ICNS", "PCX", "TGA", "SGI", "EPS", "ICO", "PDF", "JPEG2000", "AVIF"]
)
def test_formats_that_are_not_listed_are_refused(form):
    assert form not in FORMATS
    with pytest.raises(UnreadableImage, match="formats JPEG, PNG, WEBP"):
        decode(saved(picture(64, 64), form), "a")


@pytest.mark.parametrize(
    "size", [(20000, 20000), (10000, 10000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)]
)
@pytest.mark.parametrize("action", ["error", "default", "ignore"])
@pytest.mark.filterwarnings("default")
def test_bombs_are_refused_before_they_are_decoded(size, action, recwarn):
    import warnings

    content = png(*size, 1, 0, bytes(2000))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(UnreadableImage, match=r"a\.png: .*pixels"):
            decode(content, "a.png")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # as some libraries set it
    try:
        with pytest.raises(UnreadableImage, match=r"a\.png: .*pixels"):
            decode(content, "a.png")
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt"])
def test_text_that_unpacks_to_gigabytes_is_not_unpacked(name):
    packed = zlib.compress(bytes(1 << 26), 9)
    text = b"k\0\0" + packed if name == b"zTXt" else b"k\0\1\0\0\0" + packed
    with pytest.raises(UnreadableImage, match=r"a\.png: "):
        decode(png(1, 1, 8, 0, b"\0\0", (name, text)), "a.png")


def test_only_ordinary_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "giant.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", Path("/dev/zero")):
        with pytest.raises(UnreadableImage, match="is no ordinary file"):
            open_image(path)
    with pytest.raises(UnreadableImage, match="bytes, more than"):
        open_image(tmp_path / "giant.png")
    with pytest.raises(UnreadableImage, match="No such file"):
        open_image(tmp_path / "nowhere.png")
    (tmp_path / "whole.png").write_bytes(saved(picture()))
    assert difference(open_image(tmp_path / "whole.png"), picture()) == 0


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_bytes_are_an_unreadable_image_or_an_image(form, data):
    content = bytearray(saved(picture(), form))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(1, len(content)))
    with contextlib.suppress(UnreadableImage):
        assert decode(bytes(content[:end]), "a").shape[-1] == 3
