"""A mount's life: checks before it, going to the background, serving, its control socket."""
