"""The process and the machine it runs on: devices, progress, interruptions, readers."""
