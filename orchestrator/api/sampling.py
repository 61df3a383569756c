"""How a request's fields become the way in which tokens are chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestrator.api.errors import invalid
from orchestrator.api.fields import MOST_BIAS
from orchestrator.api.validated import Extras, Penalised
from orchestrator.sampling_params import MOST_TOKEN, SamplingParams
from placement.errors import InputError

_EXPECTED = f"0 to {MOST_TOKEN} in digits alone, without leading zeros"
# One way to write each, so that no token has two biases.
_TOKEN = re.compile("0|[1-9][0-9]{0,9}")


def sampling(body: Extras, seed: int) -> SamplingParams:
    """`seed`: for a request that names none.

    Raises:
        ApiError: a number is out of bounds.
    """
    penalised = body if isinstance(body, Penalised) else Penalised()
    biases = tuple(_biases(penalised.logit_bias).items())
    try:
        return SamplingParams(
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            min_p=body.min_p,
            seed=(seed if body.seed is None else body.seed) % 2**64,
            presence_penalty=penalised.presence_penalty,
            frequency_penalty=penalised.frequency_penalty,
            repetition_penalty=body.repetition_penalty,
            logit_bias=biases,
        )
    except InputError as error:
        # It begins with the field's name.
        field, _, what = str(error).partition(" ")
        raise invalid(field, what) from error


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    found = {}
    for text, bias in given.items():
        if not (_TOKEN.fullmatch(text) and int(text) <= MOST_TOKEN):
            raise invalid("logit_bias", f"{text[:50]!r} is no token id, expected {_EXPECTED}")
        if abs(bias) > MOST_BIAS:
            raise invalid("logit_bias", f"{bias} for {text}, expected -{MOST_BIAS} to {MOST_BIAS}")
        found[int(text)] = bias
    return found
