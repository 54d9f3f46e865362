"""Scenes with natural texture: emoji of several styles on photographs, which `pocket_photo` is trained and tested on."""
