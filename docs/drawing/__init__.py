"""How the drawings of the networks are drawn: `docs/draw_networks.py` calls it."""
