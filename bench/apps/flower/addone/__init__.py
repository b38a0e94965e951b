"""Training adds a number: what a round costs when training costs nothing."""
