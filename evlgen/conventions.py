"""What the paper's text leaves open and the authors' code decides: the conventions of a run.

`evlgen.config.RunConfig.conventions` is ``plain`` (this project's own choices: a newline ends every caption,
lengths are numbers of new tokens) or ``authors``, which decides as the code of the paper's authors does. Only
with the second do numbers compare with theirs, and only then does a checkpoint of theirs say what it says
there. docs/PAPER_SCALE.md lists all that it switches. What depends on the family of the language model stands
here, in one table, and whoever trains or decodes reads it from there.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from evlgen.config import ConnectorConfig, Conventions, RunConfig, TomeFormerConfig

Family = Literal["opt", "decoder", "encoder-decoder", "bert"]
Task = Literal["caption", "answer"]

# Updates in which the authors' learning rate stays the same once it is warm: their cosine moves in steps.
INNER_EPOCH = 5000
# In the notes of tables.
CONVENTIONS_NOTE = (
    "By the conventions of the authors' code (docs/PAPER_SCALE.md): OPT's `</s>` has a loss; other decoders "
    "begin and end with their end of sequence and write captions with a repetition penalty of 1.5; limits "
    "of texts count a token in front; questions are cleaned as BLIP's; the language model's dropout is "
    "active in training; the learning rate moves in steps of 5,000 updates; similarities of tokens are in "
    "half precision where training is, and image encoders add in float32"
)
PROMPT = "Question: {} Short answer:"  # BLIP-2's


@dataclass(frozen=True)
class Manners:
    """How one family of language models is trained and asked.

    Attributes:
        ends_with_eos: the tokenizer's end-of-sequence token closes a text and also begins it (Vicuna);
            otherwise a newline closes it, and an encoder-decoder's own token.
        scores_bos: the beginning-of-sequence token carries a loss.
        limit_has_bos: it is one of the ``data.max_text_tokens``.
        keeps_end: a text that is too long is cut in front of its closing token; otherwise that is cut off.
        dropout: the frozen model's own dropout is active while the rest is trained.
        cleans_questions: questions are asked as BLIP's processor leaves them (`clean_question`).
        counts_start: the texts whose limits count one token before the first that is generated.
        repetition_penalty: of captions (Keskar et al., 2019); 1 is none.
    """

    ends_with_eos: bool = False
    scores_bos: bool = False
    limit_has_bos: bool = False
    keeps_end: bool = True
    dropout: bool = False
    cleans_questions: bool = False
    counts_start: tuple[Task, ...] = ()
    repetition_penalty: float = 1.0


PLAIN = Manners()
_AUTHORS: dict[Family, Manners] = {
    "opt": Manners(
        scores_bos=True,
        limit_has_bos=True,
        keeps_end=False,
        dropout=True,
        cleans_questions=True,
        counts_start=("caption",),  # the limit of their answers is one of new tokens
    ),
    "decoder": Manners(  # Vicuna
        ends_with_eos=True,
        limit_has_bos=True,
        keeps_end=False,
        dropout=True,
        cleans_questions=True,
        counts_start=("caption", "answer"),
        repetition_penalty=1.5,
    ),
    "encoder-decoder": Manners(  # BLIP-2's T5: its decoder starts from a token that is counted
        dropout=True, cleans_questions=True, counts_start=("caption",)
    ),
    "bert": PLAIN,
}


def manners(conventions: Conventions, family: Family) -> Manners:
    """How a language model of a family is trained and asked."""
    return _AUTHORS[family] if conventions == "authors" else PLAIN


def clean_question(question: str, how: Manners) -> str:
    """The question as it is asked, by the authors' conventions as BLIP's processor leaves it."""
    return blip_question(question) if how.cleans_questions else question


def blip_question(question: str) -> str:
    """The question as BLIP's processor leaves it: in lower case, without ``.!"()*#:;~``."""
    return re.sub(r'[.!"()*#:;~]', "", question.lower()).rstrip(" ")


def prompt_of(question: str, how: Manners) -> str:
    """The text behind the soft prompt when a question is asked (PAPER)."""
    return PROMPT.format(clean_question(question, how))


def connector_of(config: RunConfig) -> ConnectorConfig:
    """The connector of a run, with what its conventions decide."""
    connector = config.connector
    if isinstance(connector, TomeFormerConfig) and connector.similarity == "auto":
        half = config.conventions == "authors"  # as it is under their mixed precision
        return dataclasses.replace(connector, similarity="half" if half else "single")
    return connector
