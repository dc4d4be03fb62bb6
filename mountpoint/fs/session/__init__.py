"""What a mount needs to go on after its process has died: `log` keeps it, `recovery` uses it."""
