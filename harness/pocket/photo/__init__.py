"""Scenes with natural texture, for `pocket_photo`: emoji of several styles on photographs."""
