"""What selection does to the visual tokens of a model: trade-off, angles, masks, ablation, bias, redundancy."""
