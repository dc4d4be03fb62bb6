"""The life of a mount: checks before it, going to the background, serving, its control socket."""
