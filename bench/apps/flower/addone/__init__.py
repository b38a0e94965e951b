"""Training adds one: what a round costs when training costs nothing."""
