"""The RICE vision tower: packed images and frames with a CLS row each, 2-D rotary positions, and the 2x2 merger."""

# ruff: noqa: RUF012 (transformers wants these class attributes as lists)

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPMLP

# It has a joint qkv projection and rotates in float32; cu_seqlens separates units under every attention kernel.
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from harness.models.compat import MAX_SEQLEN
from harness.models.llavaov15.configuration import RiceVitConfig

ROPE_THETA = 10_000.0
UNPACK = ("released", "fixed")


class RicePatchEmbed(nn.Module):
    """A linear map of each patch, stored as a convolution."""

    def __init__(self, config: RiceVitConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, kernel_size=size, stride=size, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed patches [P, channels * size * size] -> [P, D]."""
        shape = self.proj.weight.shape[1:]
        if pixels.shape[-1] != shape.numel():
            raise ValueError(
                f"pixel_values have {pixels.shape[-1]} values a patch, this model takes {shape.numel()}: "
                f"the image processor needs patch_size {shape[-1]} and temporal_patch_size 1"
            )
        embedded: Tensor = self.proj(pixels.to(self.proj.weight.dtype).view(-1, *shape))
        return embedded.flatten(1)


class RiceBlock(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: RiceVitConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Qwen2_5_VLVisionAttention(config)  # type: ignore[arg-type]  # which reads only sizes and kernel
        self.mlp = CLIPMLP(config)  # fc2(gelu(fc1(x)))

    def forward(self, hidden_states: Tensor, **units: Any) -> Tensor:
        """Map [N, D] -> [N, D]; `units` holds cu_seqlens [U + 1] and position_embeddings 2 x [N, head_dim]."""
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), **units)
        out: Tensor = hidden_states + self.mlp(self.norm2(hidden_states))
        return out


class RiceMerger(nn.Module):
    """Merge four neighbouring patches, in consecutive rows, into one visual token."""

    def __init__(self, config: RiceVitConfig) -> None:
        super().__init__()
        self.width = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(self.width, self.width), nn.GELU(), nn.Linear(self.width, config.text_hidden_size)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Map [P, D] -> [P / 4, width of the language model]."""
        out: Tensor = self.mlp(self.ln_q(patches).view(-1, self.width))
        return out


class RiceVisionModel(PreTrainedModel):
    """Encode patches into visual tokens. A unit is one image or frame; attention stays within it."""

    config: RiceVitConfig
    base_model_prefix = "visual"
    main_input_name = "hidden_states"
    input_modalities = ["image", "video"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["RiceBlock"]
    _input_embed_layer = "patch_embed"
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: RiceVitConfig) -> None:
        super().__init__(config)
        if config.unpack not in UNPACK:
            raise ValueError(f"unpack must be {' or '.join(UNPACK)}, not {config.unpack!r}")
        self.spatial_merge_size = config.spatial_merge_size
        self.angles = config.hidden_size // config.num_heads // 2  # half for the row, half for the column
        self.patch_embed = RicePatchEmbed(config)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.class_pos_emb = nn.Parameter(torch.empty(1, self.angles))
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(RiceBlock(config) for _ in range(config.depth))
        self.merger = RiceMerger(config)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            for parameter in (self.class_embedding, self.class_pos_emb):
                init.normal_(parameter, std=self.config.initializer_range)

    def forward(
        self, hidden_states: Tensor, grid_thw: Tensor, prompts: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Encode patches [P, values], with the four of a 2x2 square in sequence; `grid_thw` [images, 3] is in patches.

        `prompts` [images], ascending, is the prompt of each image; without it, all belong to one. Only the released
        unpacking uses it: otherwise the images of one prompt would shift those of the next.
        Returns `last_hidden_state` [P, D], the input of the merger, and `pooler_output` [P / 4, width].
        """
        patches = self.patch_embed(hidden_states)
        grid = grid_thw.to(patches.device)
        lengths = (grid[:, 1] * grid[:, 2]).repeat_interleave(grid[:, 0])
        self._check(grid, lengths, len(patches))
        # Rows are packed as [CLS, patches, CLS, patches, ...].
        bounds = nn.functional.pad((lengths + 1).cumsum(0), (1, 0))
        is_cls = torch.zeros(len(patches) + len(lengths), dtype=torch.bool, device=patches.device)
        is_cls[bounds[:-1]] = True
        angles = _interleave(patch_angles(grid, self.spatial_merge_size, self.angles), self.class_pos_emb, is_cls)
        angles = angles.repeat(1, 2)
        rows = self.pre_layernorm(_interleave(patches, self.class_embedding, is_cls))
        units = {"cu_seqlens": bounds.int(), "position_embeddings": (angles.cos(), angles.sin())}
        if MAX_SEQLEN:
            units["max_seqlen"] = int(lengths.max()) + 1
        for block in self.blocks:
            rows = block(rows, **units)
        rows = rows[released_rows(grid, prompts)] if self.config.unpack == "released" else rows[~is_cls]
        return BaseModelOutputWithPooling(last_hidden_state=rows, pooler_output=self.merger(rows))

    def _check(self, grid: Tensor, lengths: Tensor, patches: int) -> None:
        if int(lengths.sum()) != patches:
            raise ValueError(f"the grids {grid.tolist()} have {int(lengths.sum())} patches, pixel_values {patches}")
        if bool((grid[:, 1:] % self.spatial_merge_size).any()):
            raise ValueError(f"grids {grid.tolist()}: rows and columns must be multiples of {self.spatial_merge_size}")


def patch_angles(grid: Tensor, merge: int, dim: int) -> Tensor:
    """Return rotary angles [P, dim] in float32, rows then columns, in the order of patches; `grid` is [images, 3]."""
    places = []
    for t, h, w in grid.tolist():
        row, column = torch.meshgrid(*(torch.arange(n, device=grid.device) for n in (h, w)), indexing="ij")
        place = torch.stack([row, column], -1).view(h // merge, merge, w // merge, merge, 2)
        places.append(place.transpose(1, 2).reshape(-1, 2).repeat(t, 1))
    frequencies = ROPE_THETA ** -(torch.arange(0, dim, 2, device=grid.device, dtype=torch.float32) / dim)
    return (torch.cat(places).unsqueeze(-1) * frequencies).flatten(1)


def released_rows(grid: Tensor, prompts: Tensor | None) -> Tensor:
    """Return the packed rows [P] that the released model reads as the patches of `grid` [images, 3].

    It skips only the first CLS row of a prompt, so that patches of its later units are read too early.
    """
    cls_rows = grid[:, 0].cumsum(0) - grid[:, 0]  # [images], CLS rows before each image
    prompts = torch.zeros_like(cls_rows) if prompts is None else prompts.to(cls_rows)
    skipped = cls_rows[torch.searchsorted(prompts, prompts)]  # those before the first image of the prompt
    skipped = skipped.repeat_interleave(grid.prod(-1))
    return torch.arange(len(skipped), device=grid.device) + 1 + skipped


def _interleave(rows: Tensor, cls: Tensor, is_cls: Tensor) -> Tensor:
    """Return [N, C] with `cls` in the rows `is_cls` [N], and `rows` [P, C] in the others, in order."""
    mixed = rows.new_empty(len(is_cls), rows.shape[1])
    mixed[is_cls] = cls.to(rows.dtype)
    mixed[~is_cls] = rows
    return mixed
