"""Everything that can be wrong with a study's files, found before any cell runs."""

from __future__ import annotations

from placement.answers.study.config import Batch, Study
from placement.errors import StudyFileError
from placement.files.quote import quote
from placement.given.cluster_file import load_known_cluster
from placement.model_shape import ModelShape


def check_inputs(study: Study, shape: ModelShape) -> None:
    """Read all clusters and traces, and see that each trace is long enough for each batch and policy.

    Raises:
        ClusterFileError, RoutingFileError, InputError: a file that is wrong, or of another model.
        StudyFileError: a head without a device, a trace that is too short; names file, or trace and batch.
    """
    for cluster in study.clusters:
        boxes = load_known_cluster(cluster)
        if not next(node for node in boxes.nodes if node.name == boxes.head).devices:
            raise StudyFileError(
                f"{cluster}: node {boxes.head!r}: expected a device on the head's node, whose speed a study "
                "needs (its memory_bytes may equal its reserved_bytes)"
            )
    for context in study.contexts:
        if context > shape.max_positions:
            raise StudyFileError(
                f"study {quote(study.name)}: contexts: expected at most {shape.max_positions:,}, the longest "
                f"text of {shape.name}, found {context:,}"
            )
    for source in study.traces:
        routing = source.load(shape)
        for batch in study.batches:
            found, needed = len(routing.held_out), _tokens_needed(study, batch)
            if found < needed:
                raise StudyFileError(
                    f"trace {source.name!r}: expected at least {needed} held-out tokens for a batch of "
                    f"{batch.label}, found {found}; give a longer trace or a smaller batch"
                )


def _tokens_needed(study: Study, batch: Batch) -> int:
    """One pass; for prompts, a pass of prompts and one of answers."""
    return batch.tokens_per_step * (2 if "prompt-hottest" in study.policies else 1)
