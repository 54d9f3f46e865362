"""The attention kernels that tests run with: sdpa, eager, and one that follows FlashAttention's contract on the CPU."""

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

KERNELS = ("sdpa", "eager", "flash_like")  # transformers passes the arguments of FlashAttention to names with "flash"


def with_kernel(model, attn):
    """Set the kernel of every part of a model, including its vision tower; return the model."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config._attn_implementation = attn
    return model


def flash_like(
    module, query, key, value, attention_mask, scaling, is_causal=None, position_ids=None, cu_seq_lens_q=None, **kwargs
):
    """Padding comes as a mask [B, S], units as bounds; positions of text that jump would mean packed sequences.

    Scores [B, H, L, S] are never handed out.
    """
    assert attention_mask is None or attention_mask.ndim == 2
    if position_ids is not None and len(query) == 1 and query.shape[2] > 1:
        assert bool((position_ids.diff(dim=-1) == 1).all()), "taken for packed sequences"
    output = torch.zeros_like(query)
    if cu_seq_lens_q is not None:
        assert cu_seq_lens_q.dtype == torch.int32
        assert kwargs["max_length_q"] == cu_seq_lens_q.diff().max()
        for start, end in zip(cu_seq_lens_q[:-1].tolist(), cu_seq_lens_q[1:].tolist(), strict=True):
            part = (tensor[:, :, start:end] for tensor in (query, key, value))
            output[:, :, start:end] = functional.scaled_dot_product_attention(*part, scale=scaling)
        return output.transpose(1, 2), None
    causal = module.is_causal if is_causal is None else is_causal
    groups, steps = query.shape[1] // key.shape[1], query.shape[2]
    for row in range(len(query)):
        rows = slice(None) if attention_mask is None else attention_mask[row].bool()
        new = slice(None) if attention_mask is None else attention_mask[row, -steps:].bool()
        q, k, v = query[row][:, new], key[row][:, rows], value[row][:, rows]
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        seen = torch.ones(q.shape[1], k.shape[1], dtype=q.dtype)
        seen = seen.tril(k.shape[1] - q.shape[1]) if causal else seen
        output[row][:, new] = (q @ k.transpose(1, 2) * scaling + seen.log()).softmax(-1) @ v
    return output.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("flash_like", flash_like)
ALL_MASK_ATTENTION_FUNCTIONS.register("flash_like", flash_attention_mask)
