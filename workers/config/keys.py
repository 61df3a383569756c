"""Keys of config.json that do not bear on what the model computes.

Every other key is either read by `workers.model_config` or refused. Sources: the published files of
Step-3.5-Flash and Step-3.7-Flash, their configuration classes in transformers, vLLM and SGLang, and what
transformers itself saves.
"""

from __future__ import annotations

_FILES_AND_LIBRARIES = {
    "architectures", "auto_map", "model_type", "name_or_path", "transformers_version", "use_cache",
    "return_dict", "output_attentions", "output_hidden_states", "output_router_logits", "torchscript",
    "attn_implementation", "experts_implementation", "chunk_size_feed_forward", "tokenizer_class",
    "unsloth_version", "unsloth_fixed", "use_mtp",
}  # fmt: skip
# How weights are stored is seen from the tensors themselves: what cannot be read is refused by name there.
_STORAGE = {"dtype", "torch_dtype", "quantization_config", "compression_config"}
# We compute the router and the residual in float32, as good as or better than what these say.
_PRECISION = {"need_fp32_gate", "residual_in_fp32", "fp32_residual_connection"}
_TRAINING = {
    "attention_dropout", "hidden_dropout", "dropout", "initializer_range", "pretraining_tp",
    "router_aux_loss_coef", "moe_aux_loss_coef", "aux_loss_alpha", "problem_type", "id2label", "label2id",
    "num_labels", "finetuning_task", "task_specific_params",
}  # fmt: skip
# moe_layers_enum or mlp_layer_types says which layers are MoE; every engine then leaves these two unread.
_SUPERSEDED = {"moe_every_n_layer", "moe_layer_offset"}
_TOKENS = {
    "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id",
    "model_max_length",
}  # fmt: skip
# Defaults of sampling: what is asked for on the command line counts.
_SAMPLING = {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
    "length_penalty", "num_beams", "num_beam_groups", "diversity_penalty", "early_stopping", "max_length",
    "min_length", "max_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "return_dict_in_generate", "output_scores",
}  # fmt: skip

HARMLESS = frozenset(
    _FILES_AND_LIBRARIES | _STORAGE | _PRECISION | _TRAINING | _SUPERSEDED | _TOKENS | _SAMPLING
)

# Of the outer object of a step3p7 file: it describes images, and Potluck takes text only.
OUTER_HARMLESS = frozenset({"text_config", "projector_bias", "understand_projector_stride", "hidden_size"})
_IMAGE_PREFIXES = ("image_", "vision_", "im_", "patch_", "video_", "mm_")


def is_private(name: str) -> bool:
    """Whether a key is a note of a program to itself or of a person: `_name_or_path`, `_comment`."""
    return name.startswith("_")


def is_about_images(name: str) -> bool:
    """Whether a key of the outer object of a step3p7 file describes its vision tower."""
    return name.startswith(_IMAGE_PREFIXES)
