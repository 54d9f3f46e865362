"""What selection does to the visual tokens of a model, and what runs of many methods say about them."""
