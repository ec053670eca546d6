"""The miniworld: a world small enough for a CPU and rich enough to need vision.

Images of 64 x 64 pixels are drawn on the fly from a pool's name and an index; nothing is stored. A scene has
one to four objects, each with a shape, colour, size, texture and place, on one of six backgrounds, and people
who describe it choose what to mention. All attributes are drawn independently of each other, so none can be
read from another.

The pools play the roles of the paper's data sets:

=================  =====================================================================================
``web``            LAION: one caption an image, wrong or irrelevant at `NOISE`
``ccs``            CC3M + CC12M + SBU: one caption, rarely wrong
``coco``           COCO train: five clean captions
``coco_val``       held-out COCO, for the validation loss and for choosing hyper-parameters
``coco_test``      held-out COCO, for the captioning scores
``nocaps_in``      NoCaps in-domain: drawn like COCO
``nocaps_near``    NoCaps near-domain: at least one colour-shape pair that no paired caption ever shows
``nocaps_out``     NoCaps out-of-domain: at least one whole shape that no paired caption ever shows
``flickr``         Flickr30K: another drawing style and another caption style
``vqav2`` ...      images of the questions (`question`), drawn like COCO
``foundation``     images and texts of the foundation models' own pre-training: every shape, pair and style
``probe``          like ``foundation``, for the linear probes of the model card
=================  =====================================================================================

Pools are disjoint: each has a random stream of its own.
"""

from evlgen.conventions import PROMPT
from evlgen.miniworld.captions import CaptionCheck, caption, check_caption, note, plural
from evlgen.miniworld.drawing import object_masks, render
from evlgen.miniworld.pools import NOISE, POOLS, Pool, document, pool, version
from evlgen.miniworld.questions import (
    DISAGREEMENT,
    QUESTION_KINDS,
    Question,
    QuestionAnswer,
    ask,
    drawn_question,
    question,
)
from evlgen.miniworld.scenes import Scene, Thing, between, random_stream, relation, sample_scene
from evlgen.miniworld.vocabulary import (
    BACKGROUND_PHRASES,
    BACKGROUNDS,
    CANONICAL,
    COLOURS,
    CONTAINERS,
    FACTS,
    HELD_OUT_PAIRS,
    HELD_OUT_SHAPES,
    IRRELEVANT,
    NUMBERS,
    PLACE_PHRASES,
    PLACES,
    SHAPES,
    SIZE,
    SIZES,
    SYNONYMS,
    TEXTURES,
)

__all__ = [
    "BACKGROUNDS",
    "BACKGROUND_PHRASES",
    "CANONICAL",
    "COLOURS",
    "CONTAINERS",
    "DISAGREEMENT",
    "FACTS",
    "HELD_OUT_PAIRS",
    "HELD_OUT_SHAPES",
    "IRRELEVANT",
    "NOISE",
    "NUMBERS",
    "PLACES",
    "PLACE_PHRASES",
    "POOLS",
    "PROMPT",
    "QUESTION_KINDS",
    "SHAPES",
    "SIZE",
    "SIZES",
    "SYNONYMS",
    "TEXTURES",
    "CaptionCheck",
    "Pool",
    "Question",
    "QuestionAnswer",
    "Scene",
    "Thing",
    "ask",
    "between",
    "caption",
    "check_caption",
    "document",
    "drawn_question",
    "note",
    "object_masks",
    "plural",
    "pool",
    "question",
    "random_stream",
    "relation",
    "render",
    "sample_scene",
    "version",
]
