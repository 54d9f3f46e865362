"""What every command stands on: configuration, errors, files, processes, times. Nothing here imports torch."""
