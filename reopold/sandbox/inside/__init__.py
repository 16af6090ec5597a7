"""What runs on the sandbox's side: standard library only, started by path in a bare interpreter."""
