"""How a language model writes: the settings of beam search, plain and as the authors' code runs it.

Their version of `transformers` puts the model's beginning-of-sequence token in front of what is generated
from embeddings. It is never read, but limits, scores and the early stop count it, and a repetition penalty
holds for it. Today's `transformers` has no such token: what differs stands here, the search is the library's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from evlgen.backbones.language import FrozenLanguage
from evlgen.config import EvalConfig
from evlgen.conventions import Task
from evlgen.errors import UserError


def generation_config(language: FrozenLanguage, evaluation: EvalConfig, task: Task) -> GenerationConfig:
    """How ``language`` writes captions or answers in a run: all of beam search's settings.

    Beams also stop and are compared by lengths that count one token more where the limits do: see
    `decoding_options`.
    """
    how = language.manners
    shortest, longest = (
        (evaluation.min_length, evaluation.max_length)
        if task == "caption"
        else (1, evaluation.answer_max_length)
    )
    # The authors give min_length = 1 for answers, too, and the token that is counted fulfils it.
    counted = int(task in how.counts_start)
    shortest -= int(bool(how.counts_start))
    return GenerationConfig(
        num_beams=evaluation.beams,
        do_sample=False,
        min_new_tokens=max(shortest, 0),
        max_new_tokens=longest - counted,
        length_penalty=1.0 if task == "caption" else 0.0,
        repetition_penalty=how.repetition_penalty if task == "caption" else 1.0,
        eos_token_id=language.end_id,
        pad_token_id=language.tokenizer.pad_token_id,
        bos_token_id=language.bos_id,
    )


def check_room(language_config: Any, prompt: int, settings: GenerationConfig, what: str) -> None:
    """Refuse prompts behind which a decoder has no positions left for what it is to write.

    Args:
        prompt: tokens of the longest one, soft ones among them.
        what: has the text in it, for the message.

    Raises:
        UserError: there is no room.
    """
    room = getattr(language_config, "max_position_embeddings", None)
    new = settings.max_new_tokens or 1
    if room is not None and prompt + new > room:
        raise UserError(
            f"{what}: too long: {prompt} tokens with those of the image, {new} to be written; the language "
            f"model has room for {room}"
        )


def decoding_options(language: FrozenLanguage, settings: GenerationConfig, task: Task) -> dict[str, Any]:
    """Arguments of ``generate`` that make it write as a run of the language's conventions does.

    Args:
        settings: from `generation_config`.
    """
    if task not in language.manners.counts_start:
        return {"generation_config": settings}
    options: dict[str, Any] = {}
    if (penalty := settings.repetition_penalty) not in (None, 1.0):
        # the model's own token, whatever its tokenizer begins with
        start = getattr(language.model.config, "bos_token_id", None)
        options["logits_processor"] = LogitsProcessorList([_Penalty(start, penalty)])
        settings = copy.copy(settings)
        settings.repetition_penalty = 1.0
    if settings.num_beams > 1:
        options["custom_generate"] = beam_search
    return {"generation_config": settings, **options}


def beam_search(model: Any, input_ids: Any, generation_config: GenerationConfig, **options: Any) -> Any:
    """For ``generate(custom_generate=beam_search)``: lengths count one token in front of those generated."""
    counting = _Counting(model, generation_config)
    return GenerationMixin._beam_search(counting, input_ids, generation_config=generation_config, **options)


class _Counting:
    """A language model whose beam search compares and stops by lengths of one token more.

    - Ended beams: the library divides by the generated tokens with the closing one, the authors' version by
      those without it and the one in front: the same number.
    - Beams that are cut at the longest length have no closing token: they are divided by one more. The best
      that go on are cut, even where closed ones are likelier.
    - The early stop asks what the best candidate of this step, a closed one among them, could still reach, at
      one token more.
    """

    def __init__(self, model: Any, settings: GenerationConfig) -> None:
        self._model, self._settings = model, settings
        self._best: Tensor | None = None  # (B, 1) log-probability of the best candidate of this step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)

    def _update_finished_beams(
        self,
        *,
        topk_log_probs: Tensor,
        topk_running_sequences: Tensor,
        top_num_beam_mask: Tensor,
        next_token_hits_stopping_criteria: Tensor,
        cur_len: int,
        num_beams: int,
        **rest: Any,
    ) -> Any:
        self._best = topk_log_probs[:, :1]
        closed = topk_running_sequences[:, :, cur_len] == self._settings.eos_token_id  # (B, candidates)
        ends = closed & top_num_beam_mask
        if cur_len + 1 == self._settings.max_length:
            ends |= ~closed & ((~closed).cumsum(1) <= num_beams)
            length = cur_len + 1 - rest["decoder_prompt_len"]
            share = (length / (length + 1)) ** rest["length_penalty"]
            topk_log_probs = torch.where(closed, topk_log_probs, topk_log_probs * share)
        return self._model._update_finished_beams(
            topk_log_probs=topk_log_probs,
            topk_running_sequences=topk_running_sequences,
            top_num_beam_mask=torch.ones_like(top_num_beam_mask),
            next_token_hits_stopping_criteria=ends,
            cur_len=cur_len,
            num_beams=num_beams,
            **rest,
        )

    def _check_early_stop_heuristic(self, *, running_beam_scores: Tensor, cur_len: int, **rest: Any) -> Any:
        best = running_beam_scores if self._best is None else self._best
        return self._model._check_early_stop_heuristic(running_beam_scores=best, cur_len=cur_len + 1, **rest)


class _Penalty(LogitsProcessor):
    """The repetition penalty, also for the token in front, which the library does not see.

    Args:
        start: its id; None: there is none.
    """

    def __init__(self, start: int | None, penalty: float) -> None:
        self.start, self.penalty = start, RepetitionPenaltyLogitsProcessor(penalty)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(B, L) ids and (B, V) scores -> (B, V) scores."""
        if isinstance(self.start, int):
            input_ids = torch.cat([input_ids.new_full((len(input_ids), 1), self.start), input_ids], 1)
        return self.penalty(input_ids, scores) if input_ids.shape[1] else scores
