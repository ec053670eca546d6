"""Which run a configuration is: its id, and what the id stands for.

An id reads ``CONFIG-VERSIONS``. The first 12 hex digits stand for the configuration with defaults left out,
so that runs of one configuration share them; the last 8 stand for the versions of what the run uses: of its
data, of all weights, and of the behaviour of each component (`evlgen.runs.behaviour`). Sources are not
hashed: the commit is provenance. Paths of weights are not part of it either: their contents are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evlgen.config import RunConfig, to_json
from evlgen.runs.behaviour import components_of
from evlgen.runtime.paths import runs_folder
from evlgen.runtime.sources import (
    PIP_MODELS,
    SOURCES,
    fingerprint_of_data,
    fingerprint_of_weights,
    is_shipped,
)

# What a field meant when it was added. A field that has this value is left out, whatever its default is by
# now: a default that changes must not give new runs the ids of old ones.
_DEFAULTS: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("defaults.json").read_text("utf-8")
)
_LOCAL = "(local)"  # in the place of a path of weights, whose contents have a fingerprint
MINI_BERT, BERT = "mini-bert", "bert-base-uncased"


@dataclass(frozen=True)
class Identity:
    """What an id stands for.

    Attributes:
        config: JSON of the configuration without what has its default.
        data: what pairs and questions are read from -> fingerprint; empty for the drawn world.
        weights: role (``vision``, ``language``, ``init``, ``text``, of stage 1 with ``stage1.`` in front) ->
            fingerprint of the contents, or `evlgen.runtime.sources.MISSING`.
        components: component -> the number of its behaviour.
    """

    config: dict[str, Any]
    data: dict[str, str]
    weights: dict[str, str]
    components: dict[str, int]

    @property
    def id(self) -> str:
        """``CONFIG-VERSIONS``."""
        return f"{_hash(_json(self.config), 12)}-{_hash(_json(self.versions), 8)}"

    @property
    def versions(self) -> dict[str, Any]:
        """All but the configuration, as ``identity.json`` of a run's folder holds it."""
        return {"data": self.data, "weights": self.weights, "components": self.components}


def identify(config: RunConfig) -> Identity:
    """What the id of a run stands for, with the contents of data and weights as they are now.

    Raises:
        UserError: weights shipped with the package are damaged.
    """
    return Identity(_sparse(config), dict(_data(*_read_by(config))), _weights(config), components_of(config))


def run_id(config: RunConfig) -> str:
    """The id of a run; as `identify`, but quick for thousands of runs that differ in little."""
    return f"{config_hash(config)}-{_versions_hash(config)}"


def config_hash(config: RunConfig) -> str:
    """The first part of the id: 12 hex digits for the configuration."""
    return _hash(_text(config), 12)


def id_of(config: RunConfig, versions: Mapping[str, Any]) -> str:
    """The id of a run of a configuration with recorded versions (``identity.json``)."""
    return f"{config_hash(config)}-{_hash(_json(versions), 8)}"


def run_folder(config: RunConfig) -> Path:
    """Folder of a run in the run store, whether it exists or not."""
    return runs_folder() / run_id(config)


# ------------------------------------------------------------------------------------- configuration


def _sparse(config: RunConfig) -> dict[str, Any]:
    sparse: dict[str, Any] = json.loads(_text(config))
    return sparse


def _text(config: RunConfig) -> str:
    """JSON of a configuration without defaults, keys sorted; parts that runs share are written once."""
    fields = []
    for name in sorted(RunConfig.__dataclass_fields__):
        value = getattr(config, name)
        if isinstance(value, RunConfig):
            fields.append(f'"{name}":{_text(value)}')
        elif dataclasses.is_dataclass(value):
            if (text := _part(value)) != "{}":
                fields.append(f'"{name}":{text}')
        else:
            if name in ("vision", "language"):
                value = _without_path(value)
            value = list(value) if isinstance(value, tuple) else value  # as in JSON
            if value != _default(RunConfig, name):
                fields.append(f'"{name}":{_json(value)}')
    return "{" + ",".join(fields) + "}"


def _part(part: Any) -> str:
    known = _parts.get(id(part))
    if known is None:  # equal parts may still be written differently (1, 1.0): so by identity
        plain = to_json(part)
        sparse = {
            name: value
            for name, value in plain.items()
            if name == "kind" or value != _default(type(part), name)
        }
        if "init" in sparse:
            sparse["init"] = _without_path(sparse["init"])
        known = _parts[id(part)] = (part, _json(sparse))
    return known[1]


def _default(kind: type[Any], name: str) -> Any:
    """What a field of a part of the configuration meant when it was added, in JSON's form."""
    written = _DEFAULTS.get(kind.__name__, {})
    if name in written:
        return written[name]
    field = kind.__dataclass_fields__[name]  # a new one, of which nobody has written it down yet
    if field.default is not dataclasses.MISSING:
        return list(field.default) if isinstance(field.default, tuple) else field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return dataclasses.MISSING


def _without_path(name: str) -> str:
    """The name of a model; a path is replaced, since it differs from machine to machine."""
    return name if is_shipped(name) or name in SOURCES or name in PIP_MODELS else _LOCAL


_parts: dict[int, tuple[Any, str]] = {}  # with the part itself, so that its id stays its own

# ------------------------------------------------------------------------------------------ versions


def _versions_hash(config: RunConfig) -> str:
    """The last part of the id; runs of the same parts share it."""
    key = _decisive(config)
    if key not in _versions:
        _versions[key] = _hash(_json(identify(config).versions), 8)
    return _versions[key]


def _decisive(config: RunConfig) -> tuple[object, ...]:
    """What versions depend on; parts by identity, which `_parts` keeps alive."""
    parts = (config.connector, config.data, config.evaluation)
    for part in parts:
        _part(part)
    first = None if config.init_from is None else _decisive(config.init_from)
    return (*map(id, parts), config.vision, config.language, config.stage, first)


_versions: dict[tuple[object, ...], str] = {}


def _read_by(config: RunConfig) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """World and pools that a run and its stage 1 read, by which their data is looked up."""
    trained = [name for name, size in config.data.pools if size]
    sets = [name for name, size in config.evaluation.sets if size]
    if config.data.world == "folder":
        sets = []  # parts of the folders that it trains on
    first = () if config.init_from is None else _read_by(config.init_from)
    return ((config.data.world, (*trained, *sets, *_VALIDATION.get(config.data.world, ()))), *first)


_VALIDATION = {"capfilt": ("coco_val",)}  # pools with the held-out pairs that have files of their own


@functools.lru_cache(maxsize=1024)
def _data(*read: tuple[str, tuple[str, ...]]) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for world, pools in read:
        found |= fingerprint_of_data(world, pools)
    return tuple(sorted(found.items()))


def _weights(config: RunConfig) -> dict[str, str]:
    """Role -> fingerprint of all weights that a run uses."""
    return {
        role: _fingerprint(name) for role, name in weights_of(config).items() if name not in ("", "random")
    }


def weights_of(config: RunConfig) -> dict[str, str]:
    """Role -> name of each model whose weights a run uses, its stage 1 included."""
    found = {"vision": config.vision, "init": config.connector.init}
    if config.stage == "caption":
        found["language"] = config.language
    else:
        found["text"] = text_reader(config)
    if config.init_from is not None:
        found |= {f"stage1.{role}": name for role, name in weights_of(config.init_from).items()}
    return found


def text_reader(config: RunConfig) -> str:
    """The model whose tokens the texts of a run are.

    In stage 1 it is the BERT that ``language`` names, or that the connector starts from: BLIP-2 reads with
    BERT's own vocabulary and word embeddings. Without either it is bert-base-uncased, in the miniworld the
    miniature's.
    """
    if config.stage == "caption":
        return config.language
    name = config.language or config.connector.init
    if name in ("random", MINI_BERT) or name.endswith(".safetensors"):
        return MINI_BERT if config.data.world == "miniworld" else BERT
    return name


_fingerprint = functools.cache(fingerprint_of_weights)


def forget_fingerprints() -> None:
    """Look at data and weights anew: they have changed while this process runs."""
    _versions.clear()
    _fingerprint.cache_clear()
    _data.cache_clear()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
