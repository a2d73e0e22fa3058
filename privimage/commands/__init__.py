"""The commands of the command line, one file a group. Each prints for people, or JSON with --json."""
