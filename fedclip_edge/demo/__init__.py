"""The drawn picture world, the tiny CLIP and the one-machine federation of the demo."""
