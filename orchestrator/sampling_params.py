"""How a request wants its tokens chosen."""

from __future__ import annotations

from dataclasses import dataclass

from placement.errors import InputError

LEAST_TEMPERATURE = 2.0**-126
"""Above 0: logits are divided by it in float32."""
MOST_TEMPERATURE, MOST_TOP_K = 1e6, 2**31 - 1
MOST_SEED = 2**64 - 1
MOST_TOKEN = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen.

    The order: penalties and biases change logits; temperature divides them; top_k, then top_p, then min_p
    leave tokens out.

    Attributes:
        temperature: 0 takes the largest logit.
        top_k: 0 for all tokens. Tokens with the logit of the last one that is left are left too, as by top_p.
        min_p: leaves out tokens with less than this share of the likeliest one's probability.
        seed: the noise of every choice is a function of it and of the token's position.
        presence_penalty: taken from the logit of each token that the answer has already; frequency_penalty:
            the same, once for each time.
        repetition_penalty: divides positive logits of tokens that the text has already, multiplies others.
        logit_bias: of tokens, each once; added to the token's logit.

    Raises:
        InputError: a number is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("temperature", self.temperature, 0.0, MOST_TEMPERATURE),
            ("top_k", self.top_k, 0, MOST_TOP_K),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("seed", self.seed, 0, MOST_SEED),
            ("presence_penalty", self.presence_penalty, -1e6, 1e6),
            ("frequency_penalty", self.frequency_penalty, -1e6, 1e6),
            ("repetition_penalty", self.repetition_penalty, 1e-6, 1e6),
            *((f"logit_bias of token {token}", bias, -1e6, 1e6) for token, bias in self.logit_bias),
        ):
            if not least <= value <= most:
                upto = {MOST_SEED: "2^64 - 1", MOST_TOP_K: "2^31 - 1"}.get(int(most), f"{most:g}")
                raise InputError(f"{name} is {value}; expected a number from {least:g} to {upto}")
        for name, whole in (("top_k", self.top_k), ("seed", self.seed)):
            if not isinstance(whole, int):
                raise InputError(f"{name} is {whole}; expected a whole number")
        token_ids = [token_id for token_id, _ in self.logit_bias]
        if len(set(token_ids)) < len(token_ids):
            raise InputError("logit_bias has a token twice; expected each once")
        for token_id in token_ids:
            if not isinstance(token_id, int) or not 0 <= token_id <= MOST_TOKEN:
                raise InputError(f"logit_bias has token {token_id}; expected ids from 0")

    def check_tokens(self, vocab: int) -> None:
        """Raise InputError for a biased token that a model with so many does not have."""
        for token_id, _ in self.logit_bias:
            if not 0 <= token_id < vocab:
                raise InputError(f"logit_bias has token {token_id}; expected ids from 0 to {vocab - 1}")

    @property
    def has_edits(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
        )


GREEDY = SamplingParams(temperature=0.0)
