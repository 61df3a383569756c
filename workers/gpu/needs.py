"""What experts take of cards, and the refusal of more than is free there, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from placement.files.quote import quote
from placement.weight_format import ExpertFormat
from workers.formats.checkpoint import Checkpoint
from workers.gpu.errors import DeviceUnavailable
from workers.gpu.free import card_name, free_vram
from workers.memory.budget import Need, check_memory
from workers.model_config import Step35Config
from workers.pool import need_of
from workers.tiers import TierSpec


def vram_needs(
    specs: Sequence[TierSpec], checkpoint: Checkpoint, config: Step35Config, dtype: str
) -> dict[str, list[Need]]:
    """What a box's tiers take of each card, by its name; arguments as of `workers.pool.load_tiers`.

    Raises:
        CheckpointError: a layer's experts are missing.
    """
    needs: dict[str, list[Need]] = {}
    for spec in specs:
        if spec.kind == "vram":
            of_card = needs.setdefault(card_name(spec.device), [])
            if not spec.experts:
                # A cache takes what is free, later.
                continue
            forms = {layer: ExpertFormat.of_name(spec.forms.get(layer, dtype)) for layer in spec.experts}
            what = f"{spec.num_experts:,} experts on {quote(spec.name)}"
            of_card.append(need_of(spec.experts, what, checkpoint, config, forms))
    return needs


def check_cards(needs: Mapping[str, Sequence[Need]], advice: str) -> None:
    """Refuse what does not fit.

    Args:
        needs: of each card.
        advice: what would help.

    Raises:
        PlanDoesNotFit: names what takes how much of which card, and what is missing.
        DeviceUnavailable: a card is not here, or cannot be used.
    """
    for device, of_device in needs.items():
        try:
            free = free_vram(device)
        except DeviceUnavailable as error:
            raise DeviceUnavailable(f"{device} is in the plan, but {error}") from error
        check_memory(of_device, free, where=f"device {device}", advice=advice)
